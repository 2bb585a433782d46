/* The state of a context on a GPU, what it shares with others, and how functions fail. */
#ifndef TCOMP_CUDA_DEVICE_H
#define TCOMP_CUDA_DEVICE_H

#include "cuda.h"
#include "cuda_driver.h"

#define TCOMP_CUDA_RECORDINGS 4 /* kept at once: callers take turns with two or three sets of tensors */

/* The steps of a run as a CUDA graph. */
typedef struct {
  handle graph;      /* NULL: none */
  void **pointers;   /* of each input, then each output, that it was recorded with */
  uint64_t last_run; /* that launched it, by `runs` */
} tcomp_cuda_recording;

#define TCOMP_CUDA_NON_BLOCKING 1 /* CU_STREAM_NON_BLOCKING */

/* What no run changes. */
struct tcomp_placed {
  int number;      /* of the device */
  handle context;  /* its primary one */
  const tcomp_variant_info *variant;
  handle *modules, *functions; /* of all images and launches; NULL where not the variant's */
  address weights, packed;
};

struct tcomp_device {
  const tcomp_placed *placed;
  handle *streams;             /* tcomp_cuda_stream_count; runs that are waited for begin and end in the first */
  handle current;              /* the one that steps go to now */
  handle *step_events;         /* of steps that other streams wait for, else NULL */
  handle order, begin, end;    /* events: of fork and join; around a step that is timed */
  handle done;                 /* the end of the last run, if one may be under way */
  int is_under_way;
  address arena;
  address *staged;             /* for each input, then each output: 0 while none was needed */
  void **locked;               /* page-locked memory of the CPU, likewise */
  tcomp_cuda_recording recordings[TCOMP_CUDA_RECORDINGS];
  uint64_t runs;
  const char *problem;         /* what the driver refused in this run, and with which code */
  int code;
};

tcomp_status tcomp_cuda_refused(char *text, const char *what, int code);

#define TRY(what, call)                                              \
  do {                                                               \
    int code_ = (call);                                              \
    if (code_ != 0) return tcomp_cuda_refused(text, what, code_);    \
  } while (0)

/* Whether the caller has a current CUDA context, and the number of its device. */
int tcomp_cuda_current_device(int *number);

/* Whether options name the variant, or none. */
int tcomp_cuda_is_wanted(const tcomp_options *options, const tcomp_variant_info *variant);

/* `place` and `remove` of tcomp_backend. */
tcomp_status tcomp_cuda_place(const tcomp_options *options, const char *weights, tcomp_placed **result, char *text);
void tcomp_cuda_remove(tcomp_placed *placed);

/* Runs of tcomp_backend. */
tcomp_status tcomp_cuda_run(tcomp_device *device, const tcomp_variant_info *variant, const tcomp_frame *frame,
                            int32_t *step, char *text);
tcomp_status tcomp_cuda_enqueue(tcomp_device *device, const tcomp_variant_info *variant, const tcomp_frame *frame,
                                void *stream, int32_t *step, char *text);

#endif
