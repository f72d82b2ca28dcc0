// What the kernels share: vectors of neighbouring channels, and signals in memory.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifndef LANES
#define LANES 4
#endif

namespace {

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t UVec __attribute__((vector_size(4 * LANES)));
typedef uint16_t HVec __attribute__((vector_size(2 * LANES)));

template <typename T>
struct Signal {  // of one image and some channels, at (h, w)
  T* data = nullptr;
  long stride_h = 0, stride_w = 0;
  int channels = 0;

  Signal block(int index) const {
    return {data ? data + index * LANES : data, stride_h, stride_w, std::min(LANES, channels - index * LANES)};
  }
  void prefetch(int h, int count) const {
    if (!data) return;
    for (int w = 0; w < count; ++w)
      for (int c = 0; c < channels; c += 64 / sizeof(T))
        __builtin_prefetch(data + h * stride_h + w * stride_w + c);
  }
  Vec load(int h, int w) const { return widened(data + h * stride_h + w * stride_w); }
  void store(int h, int w, Vec value) const { narrow(value, data + h * stride_h + w * stride_w); }

 private:
  template <typename Bits>
  Bits bits(const void* from) const {
    if (__builtin_expect(channels == LANES, 1)) {
      Bits value;
      std::memcpy(&value, from, sizeof value);
      return value;
    }
    Bits some = {};  // a variable of its own: this one is not in a register
    std::memcpy(&some, from, channels * sizeof(T));
    return some;
  }
  template <typename Bits>
  void set_bits(void* to, Bits value) const {
    if (__builtin_expect(channels == LANES, 1)) {
      std::memcpy(to, &value, sizeof value);
      return;
    }
    Bits some = value;
    std::memcpy(to, &some, channels * sizeof(T));
  }
  Vec widened(const float* from) const { return bits<Vec>(from); }
  Vec widened(const uint16_t* from) const {  // bfloat16
    UVec wide = __builtin_convertvector(bits<HVec>(from), UVec) << 16;
    Vec value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  void narrow(Vec value, float* to) const { set_bits(to, value); }
  void narrow(Vec value, uint16_t* to) const {
    UVec wide;
    std::memcpy(&wide, &value, sizeof value);
    UVec rounded = (wide + (0x7fffu + ((wide >> 16) & 1u))) >> 16;  // to nearest, ties to even
    UVec nan = UVec(value != value);
    set_bits(to, __builtin_convertvector((nan & 0x7fc0u) | (~nan & rounded), HVec));
  }
};

struct Array {  // strides of sample, H and W; channels are neighbours
  void* data;
  long strides[3];
};

template <typename T>
Signal<T> signal(const Array& array, int sample, long channel, int channels) {
  if (!array.data) return {};
  return {static_cast<T*>(array.data) + sample * array.strides[0] + channel, array.strides[1], array.strides[2],
          channels};
}

inline int blocks_of(int channels) { return (channels + LANES - 1) / LANES; }

// Memory of a thread, which its next call uses again unless it is large
struct Scratch {
  void* data = nullptr;
  size_t size = 0;
  template <typename T>
  T* get(size_t numbers) {
    size_t bytes = (numbers * sizeof(T) + 63) / 64 * 64;
    if (bytes > size) {
      std::free(data);
      data = std::aligned_alloc(64, bytes), size = bytes;
      if (!data) std::abort();
    }
    return static_cast<T*>(data);
  }
  void end_call() {
    if (size > (8 << 20)) std::free(data), data = nullptr, size = 0;
  }
  ~Scratch() { std::free(data); }
};
thread_local Scratch scratch;

}  // namespace
