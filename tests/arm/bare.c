/* A program without a C library: inputs from standard input, the model, outputs to standard output. It asks
 * Linux for nothing but read, write and exit; on a bare machine these would be a device. HEADER is the
 * model's. */
#include HEADER

static long call(long number, long a, const void *b, long c) {
#if defined(__aarch64__)
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register const void *x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
  return x0;
#elif defined(__arm__)
  register long r7 __asm__("r7") = number;
  register long r0 __asm__("r0") = a;
  register const void *r1 __asm__("r1") = b;
  register long r2 __asm__("r2") = c;
  __asm__ volatile("svc 0" : "+r"(r0) : "r"(r7), "r"(r1), "r"(r2) : "memory");
  return r0;
#elif defined(__x86_64__)
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return result;
#endif
}

#if defined(__aarch64__)
enum { READ = 63, WRITE = 64, EXIT = 93 };
#elif defined(__arm__)
enum { READ = 3, WRITE = 4, EXIT = 1 };
#else
enum { READ = 0, WRITE = 1, EXIT = 60 };
#endif

static NETWORK_INPUT0_TYPE image[NETWORK_INPUT0_ELEMENTS];
static NETWORK_OUTPUT0_TYPE scores[NETWORK_OUTPUT0_ELEMENTS];

__attribute__((used)) static void begin(void) {
  for (unsigned long got = 0; got < sizeof image;) {
    long more = call(READ, 0, (char *)image + got, (long)(sizeof image - got));
    if (more <= 0) call(EXIT, 2, 0, 0);
    got += (unsigned long)more;
  }
  void *inputs[] = {image}, *outputs[] = {scores};
  int status = 0;
  for (int i = 0; i < 3 && status == 0; i++) status = network_run(inputs, outputs);
  if (status == 0) call(WRITE, 1, scores, sizeof scores);
  call(EXIT, status, 0, 0);
}

#if defined(__arm__)
int raise(int signal) { return (int)call(EXIT, signal, 0, 0); } /* libgcc for Linux, on division by zero */
#endif

#if defined(__aarch64__)
__asm__(".globl _start\n_start: mov x29, #0\n bl begin\n");
#elif defined(__arm__)
__asm__(".globl _start\n.type _start, %function\n_start: mov fp, #0\n bic sp, sp, #7\n bl begin\n");
#else
__asm__(".globl _start\n_start: xor %ebp, %ebp\n and $-16, %rsp\n call begin\n");
#endif
