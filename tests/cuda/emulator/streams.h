// Streams, events and graphs of the stand-in driver. Work waits until somebody waits for it, and of a graph what
// was recorded last goes first where it may: so what is not ordered is not done, or in the wrong order.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <memory>
#include <set>
#include <vector>

struct Work;
using Task = std::shared_ptr<Work>;
using Action = std::function<void()>;
struct Work {
  Action action;
  std::vector<Task> before;
  bool done = false;
};

struct Node {
  Action action;
  std::set<size_t> before;
};
struct Graph { std::vector<Node> nodes; };
struct Executable {
  std::shared_ptr<Graph> graph;
  Task last;  // launch
};

struct Stream {
  Task last;
  Graph *capture = nullptr;
  std::set<size_t> ends;  // nodes of the graph that the next one comes after
  bool begins_capture = false;
};
struct Event {
  double seconds = 0;
  Task task;
  Graph *capture = nullptr;
  std::set<size_t> ends;
};

inline Stream legacy_stream;
inline std::set<Stream *> streams = {&legacy_stream};
inline std::set<Graph *> captures;

// Handles 0 to 2 mean the default streams.
inline Stream *stream_of(void *handle) { return (uintptr_t)handle <= 2 ? &legacy_stream : (Stream *)handle; }

inline double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

// Does `task` and what it comes after.
inline void finish(const Task &task) {
  std::vector<Task> stack;
  if (task) stack.push_back(task);
  while (!stack.empty()) {
    Task top = stack.back();
    if (!top->before.empty()) {
      std::vector<Task> before;
      before.swap(top->before);
      for (Task &one : before)
        if (one && !one->done) stack.push_back(one);
      continue;
    }
    stack.pop_back();
    if (!top->done) top->action();
    top->done = true;
    top->action = nullptr;
  }
}
inline void finish_all() {
  for (Stream *stream : streams) finish(stream->last);
}

// Lets `action` follow what is in the stream, and `others`.
inline Task perform(void *handle, Action action, std::vector<Task> others = {}) {
  Stream *stream = stream_of(handle);
  if (stream->capture != nullptr) {
    stream->capture->nodes.push_back({std::move(action), stream->ends});
    stream->ends = {stream->capture->nodes.size() - 1};
    return nullptr;
  }
  others.push_back(stream->last);
  return stream->last = std::make_shared<Work>(Work{std::move(action), std::move(others)});
}

inline void record(Event *event, void *handle) {
  Stream *stream = stream_of(handle);
  event->capture = stream->capture;
  event->ends = stream->ends;
  event->task = nullptr;
  if (stream->capture == nullptr) event->task = perform(handle, [=] { event->seconds = now(); });
}

enum { STREAM_OK = 0, STREAM_INVALID = 1, CAPTURE_UNSUPPORTED = 900, CAPTURE_UNJOINED = 904, CAPTURE_ISOLATION = 905 };

inline int wait(void *handle, Event *event) {
  Stream *stream = stream_of(handle);
  if (event->capture != nullptr) {
    if (captures.count(event->capture) == 0) return STREAM_INVALID;  // recorded in a capture that has ended
    if (stream->capture != nullptr && stream->capture != event->capture) return CAPTURE_ISOLATION;
    stream->capture = event->capture;
    stream->ends.insert(event->ends.begin(), event->ends.end());
    return STREAM_OK;
  }
  if (stream->capture != nullptr) return CAPTURE_ISOLATION;
  perform(handle, [] {}, {event->task});
  return STREAM_OK;
}

inline int begin_capture(void *handle) {
  Stream *stream = stream_of(handle);
  if (stream == &legacy_stream || stream->capture != nullptr) return CAPTURE_UNSUPPORTED;
  stream->capture = new Graph;
  stream->begins_capture = true;
  captures.insert(stream->capture);
  return STREAM_OK;
}

inline int end_capture(void *handle, void **result) {
  Graph *graph = stream_of(handle)->capture;
  if (graph == nullptr || !stream_of(handle)->begins_capture) return STREAM_INVALID;
  std::set<size_t> joined = stream_of(handle)->ends;
  for (size_t i = graph->nodes.size(); i-- > 0;)
    if (joined.count(i)) joined.insert(graph->nodes[i].before.begin(), graph->nodes[i].before.end());
  captures.erase(graph);
  for (Stream *stream : streams)
    if (stream->capture == graph) {
      stream->capture = nullptr;
      stream->ends.clear();
      stream->begins_capture = false;
    }
  bool whole = joined.size() == graph->nodes.size();
  if (!whole) {
    delete graph;
    graph = nullptr;
  }
  *result = graph;
  return whole ? STREAM_OK : CAPTURE_UNJOINED;
}

inline void perform_all(const Graph &graph) {
  std::vector<bool> done(graph.nodes.size());
  for (size_t count = 0; count < graph.nodes.size(); count++)
    for (size_t i = graph.nodes.size(); i-- > 0;) {
      bool ready = !done[i];
      for (size_t one : graph.nodes[i].before) ready = ready && done[one];
      if (!ready) continue;
      graph.nodes[i].action();
      done[i] = true;
      break;
    }
}

inline int launch_graph(Executable *executable, void *handle) {
  if (stream_of(handle)->capture != nullptr) return CAPTURE_UNSUPPORTED;
  auto graph = executable->graph;
  executable->last = perform(handle, [=] { perform_all(*graph); }, {executable->last});
  return STREAM_OK;
}

inline void destroy_executable(Executable *executable) {
  if (executable->last && !executable->last->done) {
    fprintf(stderr, "emulated GPU: a graph is destroyed before its launch has ended\n");
    abort();
  }
  delete executable;
}
