// Includes KERNEL once for each instruction set that a source is compiled for, with LANES floats a vector and all in a
// namespace of its own: plain, avx2, avx512. KERNEL is a path from this folder; it may include others beside it.
// DISPATCH(set, function(arguments)) then calls the one of the set that was asked for.

#define LANES 4
#define NAMESPACE plain
#include KERNEL
#undef LANES
#undef NAMESPACE

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define LANES 8
#define NAMESPACE avx2
#include KERNEL
#undef LANES
#undef NAMESPACE
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,fma,prefer-vector-width=512")
#endif
#define LANES 16
#define NAMESPACE avx512
#include KERNEL
#undef LANES
#undef NAMESPACE
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace {

// What an instruction set is called from outside: 1 plain, 2 AVX2, 3 AVX-512; kernels/library.py has the names.
inline int best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) return 3;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 2;
#endif
  return 1;
}

// 0 asks for the best there is; one that the machine lacks becomes its best.
inline int chosen(int asked) {
  const int most = best();
  return asked == 0 || asked > most ? most : asked;
}

}  // namespace

#if defined(__x86_64__)
#define DISPATCH(set, ...)                \
  switch (chosen(set)) {                  \
    case 3: avx512::__VA_ARGS__; break;   \
    case 2: avx2::__VA_ARGS__; break;     \
    default: plain::__VA_ARGS__;          \
  }
#else
#define DISPATCH(set, ...) plain::__VA_ARGS__;
#endif
