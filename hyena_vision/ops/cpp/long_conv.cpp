// Long convolutions on the CPU, several channels at a time; long_conv.py says how and calls this through ctypes.
//
// A vector holds the same number of LANES neighbouring channels, so that all arithmetic reads like that of one channel
// and no transform needs to move numbers within a vector.

#include "vector.h"

namespace {

struct Complex {
  Vec re, im;
};

struct Float2 {
  float re, im;
};

inline Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
inline Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
inline Complex operator*(Complex a, Float2 w) { return {a.re * w.re - a.im * w.im, a.re * w.im + a.im * w.re}; }
inline Complex times_conj(Complex a, Float2 w) { return {a.re * w.re + a.im * w.im, a.im * w.re - a.re * w.im}; }
inline Complex operator*(Complex a, Complex b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
inline Complex times_conj(Complex a, Complex b) { return {a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im}; }
// a times -i, or i for the inverse
template <bool INVERSE>
inline Complex rotated(Complex a) {
  return INVERSE ? Complex{-a.im, a.re} : Complex{a.im, -a.re};
}

Float2 root(double numerator, double denominator) {  // exp(-2 pi i numerator / denominator)
  double angle = -2.0 * M_PI * std::fmod(numerator, denominator) / denominator;
  return {float(std::cos(angle)), float(std::sin(angle))};
}

// ---------------------------------------------------------------- FFT: Stockham's, mixed radix

struct Fft {
  int size;
  std::vector<int> radices;
  std::vector<std::vector<Float2>> twiddles;

  explicit Fft(int n) : size(n) {
    int rest = n;
    for (int radix : {8, 4, 7, 5, 3, 2})
      while (rest % radix == 0 && !(radix == 8 && (rest == 16 || rest == 32))) radices.push_back(radix), rest /= radix;
    rest = n;
    for (int radix : radices) {
      int m = rest / radix;
      std::vector<Float2> table;
      for (int p = 0; p < m; ++p)
        for (int j = 1; j < radix; ++j) table.push_back(root(double(p) * j, rest));
      twiddles.push_back(table);
      rest = m;
    }
  }
};

template <bool INVERSE>
inline void butterfly2(Complex* a) {
  Complex t = a[0] - a[1];
  a[0] = a[0] + a[1];
  a[1] = t;
}

template <bool INVERSE>
inline void butterfly4(Complex& a, Complex& b, Complex& c, Complex& d) {
  Complex s = a + c, t = a - c, u = b + d, v = rotated<INVERSE>(b - d);
  a = s + u;
  b = t + v;
  c = s - u;
  d = t - v;
}

template <int R>
struct OddTable {
  float cosine[R], sine[R];
  OddTable() {
    for (int k = 0; k < R; ++k) cosine[k] = std::cos(2 * M_PI * k / R), sine[k] = std::sin(2 * M_PI * k / R);
  }
};

template <int R, bool INVERSE>
inline void butterfly_odd(Complex* a) {
  static const OddTable<R> table;
  constexpr int half = R / 2;
  Complex sum[half], diff[half], first = a[0];
  for (int k = 0; k < half; ++k) {
    sum[k] = a[k + 1] + a[R - 1 - k];
    diff[k] = rotated<INVERSE>(a[k + 1] - a[R - 1 - k]);
    a[0] = a[0] + sum[k];
  }
  for (int j = 1; j <= half; ++j) {
    Complex even = first, odd = {Vec{}, Vec{}};
    for (int k = 1; k <= half; ++k) {
      float c = table.cosine[j * k % R], s = table.sine[j * k % R];
      even.re += c * sum[k - 1].re, even.im += c * sum[k - 1].im;
      odd.re += s * diff[k - 1].re, odd.im += s * diff[k - 1].im;
    }
    a[j] = even + odd;
    a[R - j] = even - odd;
  }
}

template <int R, bool INVERSE>
inline void butterfly(Complex* a) {
  if constexpr (R == 2) {
    butterfly2<INVERSE>(a);
  } else if constexpr (R == 4) {
    butterfly4<INVERSE>(a[0], a[1], a[2], a[3]);
  } else if constexpr (R == 8) {
    butterfly4<INVERSE>(a[0], a[2], a[4], a[6]);
    butterfly4<INVERSE>(a[1], a[3], a[5], a[7]);
    constexpr float h = 0.70710678118654752f;
    Complex b = a[3], c = a[5], d = a[7];
    Complex r = rotated<INVERSE>(b), q = rotated<INVERSE>(d);
    b = {h * (b.re + r.re), h * (b.im + r.im)};
    c = rotated<INVERSE>(c);
    d = {h * (q.re - d.re), h * (q.im - d.im)};
    Complex e0 = a[0], e1 = a[2], e2 = a[4], e3 = a[6], o0 = a[1];
    a[0] = e0 + o0, a[4] = e0 - o0;
    a[1] = e1 + b, a[5] = e1 - b;
    a[2] = e2 + c, a[6] = e2 - c;
    a[3] = e3 + d, a[7] = e3 - d;
  } else {
    butterfly_odd<R, INVERSE>(a);
  }
}

template <int R, bool INVERSE>
void pass(const Complex* x, long xs, Complex* y, long ys, int m, int s, const Float2* w) {
  for (int q = 0; q < s; ++q) {
    Complex a[R];
    for (int k = 0; k < R; ++k) a[k] = x[(q + long(s) * m * k) * xs];
    butterfly<R, INVERSE>(a);
    for (int j = 0; j < R; ++j) y[(q + long(s) * j) * ys] = a[j];
  }
  for (int p = 1; p < m; ++p) {
    w += R - 1;
    for (int q = 0; q < s; ++q) {
      Complex a[R];
      for (int k = 0; k < R; ++k) a[k] = x[(q + long(s) * (p + m * k)) * xs];
      butterfly<R, INVERSE>(a);
      y[(q + long(s) * R * p) * ys] = a[0];
      for (int j = 1; j < R; ++j)
        y[(q + long(s) * (R * p + j)) * ys] = INVERSE ? times_conj(a[j], w[j - 1]) : a[j] * w[j - 1];
    }
  }
}

// From x to y, any strides (in numbers), by way of two buffers. No scale.
template <bool INVERSE>
void transform(const Fft& fft, const Complex* x, long xs, Complex* y, long ys, Complex* buffer, Complex* other) {
  int s = 1, rest = fft.size, last = int(fft.radices.size()) - 1;
  if (last < 0) {
    y[0] = x[0];
    return;
  }
  for (int i = 0; i <= last; ++i) {
    Complex* out = i == last ? y : buffer;
    long os = i == last ? ys : 1;
    int radix = fft.radices[i], m = rest / radix;
    const Float2* w = fft.twiddles[i].data();
    switch (radix) {
      case 2: pass<2, INVERSE>(x, xs, out, os, m, s, w); break;
      case 3: pass<3, INVERSE>(x, xs, out, os, m, s, w); break;
      case 4: pass<4, INVERSE>(x, xs, out, os, m, s, w); break;
      case 5: pass<5, INVERSE>(x, xs, out, os, m, s, w); break;
      case 7: pass<7, INVERSE>(x, xs, out, os, m, s, w); break;
      default: pass<8, INVERSE>(x, xs, out, os, m, s, w);
    }
    s *= radix, rest = m;
    x = out, xs = 1;
    std::swap(buffer, other);
  }
}

// ---------------------------------------------------------------- plan

struct Plan {
  bool image;
  int height, width, length;  // (H, W) of an image, or the length of a sequence, whose numbers a, a + height, ... are row a
  Fft fft_h, fft_w;
  std::vector<Float2> twist_w, twist_h, phase;

  Plan(bool image, int height, int width, int size_h, int size_w)
      : image(image), height(image ? height : size_h), width(width), length(width), fft_h(size_h),
        fft_w(size_w) {
    for (int j = 0; j < size_w; ++j) twist_w.push_back(root(-j, 4.0 * size_w));
    for (int a = 0; a < size_h; ++a) twist_h.push_back(root(a, 2.0 * size_h));
    if (image) return;
    double total = double(size_h) * size_w;
    for (int a = 0; a < size_h; ++a)
      for (int f = 0; f < size_w; ++f) phase.push_back(root((4.0 * f - 1.0) * a, 4.0 * total));
  }
  int sets() const { return image ? 2 : 1; }
  int size_h() const { return fft_h.size; }
  int size_w() const { return fft_w.size; }
  long pitch() const { return size_w() + 1; }  // a row more than needed: columns would share few sets of the cache
  long numbers() const { return long(size_w()) * sets() * size_h(); }  // of a block's spectrum
  float scale() const { return float(1.0 / (double(size_w()) * sets() * size_h())); }
  int used(int a) const { return image ? width : (a < length ? (length - a - 1) / size_h() + 1 : 0); }
};

// ---------------------------------------------------------------- kernels

// Taps of one block of channels, by displacement; those of the kernel that reach a signal
template <typename T>
struct Taps {
  T* data;
  long channel_stride, stride_h, stride_w;
  int channels, before_h, after_h, before_w, after_w;  // displacements -before .. after - 1

  Vec load(long displacement) const {
    Vec value = {};
    if (channel_stride == 1 && channels == LANES)
      std::memcpy(&value, data + displacement, sizeof value);
    else
      for (int c = 0; c < channels; ++c) value[c] = data[c * channel_stride + displacement];
    return value;
  }
  void store(long displacement, Vec value) const {
    if (channel_stride == 1 && channels == LANES)
      std::memcpy(data + displacement, &value, sizeof value);
    else
      for (int c = 0; c < channels; ++c) data[c * channel_stride + displacement] = value[c];
  }
};

// Place of a number in a period of length 2 size: its displacement, or none
inline bool displacement(long place, long period, int before, int after, long* result) {
  if (place < after) return *result = place, true;
  if (place >= period - before) return *result = place - period, true;
  return false;
}

// ---------------------------------------------------------------- transforms of a block of channels

struct Work {
  const Plan& plan;
  Complex *blocks, *signal, *buffer, *other, *columns[4];
  long of_block;

  // Room for `count` blocks of `height` rows
  Work(const Plan& plan, int count, int height) : plan(plan), of_block(height * plan.pitch()) {
    long n = std::max(plan.size_w(), plan.size_h());
    blocks = scratch.get<Complex>(count * of_block + 7 * n);
    signal = blocks + count * of_block, buffer = signal + n, other = buffer + n;
    for (int i = 0; i < 4; ++i) columns[i] = other + (i + 1) * n;
  }
  Complex* row(int block, int a) const { return blocks + block * of_block + a * plan.pitch(); }

  // Negacyclic transform of load(0), ..., load(used - 1): odd frequencies of a period of twice the size
  template <typename Load>
  void forward_w(int a, int used, Complex* out, Load load) {
    int size = plan.size_w();
    for (int j = 0; j < size; ++j) {
      Vec re = j < used ? load(j) : Vec{};
      Float2 w = plan.twist_w[j];
      if (j + size < used)
        signal[j] = Complex{re, load(j + size)} * w;
      else
        signal[j] = {re * w.re, re * w.im};
    }
    transform<false>(plan.fft_w, signal, 1, out, 1, buffer, other);
    if (plan.image || a == 0) return;
    const Float2* w = &plan.phase[long(a) * size];
    for (int f = 0; f < size; ++f) out[f] = out[f] * w[f];
  }

  template <typename Store>
  void back_w(int a, int used, const Complex* in, Store store) {
    int size = plan.size_w();
    if (!plan.image && a > 0) {
      const Float2* w = &plan.phase[long(a) * size];
      for (int f = 0; f < size; ++f) signal[f] = times_conj(in[f], w[f]);
      in = signal;
    }
    transform<true>(plan.fft_w, in, 1, signal, 1, buffer, other);
    for (int j = 0; j < size && j < used; ++j) {
      Complex value = times_conj(signal[j], plan.twist_w[j]);
      store(j, value.re);
      if (j + size < used) store(j + size, value.im);
    }
  }

  // Cyclic transform of `height` numbers: even frequencies and odd ones; a sequence has the first kind alone
  void forward_h(const Complex* in, int height, Complex* even, Complex* odd) {
    int size = plan.size_h();
    long stride = plan.pitch();
    if (!plan.image) return transform<false>(plan.fft_h, in, stride, even, 1, buffer, other);
    for (int a = 0; a < size; ++a) {
      Complex sum = a < height ? in[a * stride] : Complex{}, difference = sum;
      if (a + size < height) {
        Complex second = in[(a + size) * stride];
        sum = sum + second, difference = difference - second;
      }
      even[a] = sum;
      odd[a] = difference * plan.twist_h[a];
    }
    transform<false>(plan.fft_h, even, 1, even, 1, buffer, other);
    transform<false>(plan.fft_h, odd, 1, odd, 1, buffer, other);
  }

  void back_h(Complex* even, Complex* odd, Complex* out, int height) {
    int size = plan.size_h();
    long stride = plan.pitch();
    if (!plan.image) return transform<true>(plan.fft_h, even, 1, out, stride, buffer, other);
    transform<true>(plan.fft_h, even, 1, even, 1, buffer, other);
    transform<true>(plan.fft_h, odd, 1, odd, 1, buffer, other);
    for (int a = 0; a < size && a < height; ++a) {
      Complex second = times_conj(odd[a], plan.twist_h[a]);
      out[a * stride] = even[a] + second;
      if (a + size < height) out[(a + size) * stride] = even[a] - second;
    }
  }

  // All rows of some blocks: neighbours in memory are used while their pages are at hand
  template <typename T>
  void all_forward_w(int first, const Signal<T>& x, const Signal<T>& gate) {
    for (int a = 0; a < plan.height; ++a) {
      int used = plan.used(a);
      if (a + 1 < plan.height) x.prefetch(a + 1, plan.used(a + 1)), gate.prefetch(a + 1, plan.used(a + 1));
      for (int block = 0; block * LANES < x.channels; ++block) {
        Signal<T> u = x.block(block), g = gate.block(block);
        if (g.data)
          forward_w(a, used, row(first + block, a), [&](int b) { return u.load(a, b) * g.load(a, b); });
        else
          forward_w(a, used, row(first + block, a), [&](int b) { return u.load(a, b); });
      }
    }
  }

  // Into y, times a gate if there is one, and times a second gate into a second result if there is one
  template <typename T>
  void all_back_w(int first, const Signal<T>& gate, const Signal<T>& y, const Signal<T>& gate2, const Signal<T>& y2) {
    for (int a = 0; a < plan.height; ++a) {
      int used = plan.used(a);
      if (a + 1 < plan.height)
        for (const Signal<T>* signal : {&gate, &y, &gate2, &y2}) signal->prefetch(a + 1, plan.used(a + 1));
      for (int block = 0; block * LANES < y.channels; ++block) {
        Signal<T> g = gate.block(block), v = y.block(block), g2 = gate2.block(block), v2 = y2.block(block);
        const Complex* in = row(first + block, a);
        if (v2.data)
          back_w(a, used, in, [&](int b, Vec value) {
            v.store(a, b, value * g.load(a, b)), v2.store(a, b, value * g2.load(a, b));
          });
        else if (g.data)
          back_w(a, used, in, [&](int b, Vec value) { v.store(a, b, value * g.load(a, b)); });
        else
          back_w(a, used, in, [&](int b, Vec value) { v.store(a, b, value); });
      }
    }
  }
};

template <typename T>
void convolve(const Plan& plan, const Signal<T>& x, const Signal<T>& gate, const Signal<T>& out_gate,
              const Signal<T>& y, const Complex* spectrum) {
  int blocks = blocks_of(x.channels), size = plan.size_h(), sets = plan.sets();
  Work work(plan, blocks, plan.height);
  work.all_forward_w(0, x, gate);
  for (int block = 0; block < blocks; ++block)
    for (int f = 0; f < plan.size_w(); ++f) {
      Complex* column = work.row(block, 0) + f;
      work.forward_h(column, plan.height, work.columns[0], work.columns[1]);
      for (int set = 0; set < sets; ++set, spectrum += size)
        for (int g = 0; g < size; ++g) work.columns[set][g] = work.columns[set][g] * spectrum[g];
      work.back_h(work.columns[0], work.columns[1], column, plan.height);
    }
  work.all_back_w<T>(0, out_gate, y, {}, {});
}

// y = out_gate * conv(gate * x): gradients of x and both gates, and of the spectrum, which is set or added to
template <typename T>
void gradients(const Plan& plan, const Signal<T>& dy, const Signal<T>& x, const Signal<T>& gate,
               const Signal<T>& out_gate, const Signal<T>& dx, const Signal<T>& dgate, const Signal<T>& dout_gate,
               const Complex* spectrum, Complex* dspectrum, bool add) {
  int blocks = blocks_of(x.channels), size = plan.size_h(), sets = plan.sets();
  Work work(plan, 2 * blocks, plan.height);
  work.all_forward_w(0, x, gate);
  work.all_forward_w(blocks, dy, out_gate);
  for (int block = 0; block < blocks; ++block)
    for (int f = 0; f < plan.size_w(); ++f) {
      Complex *u = work.row(block, 0) + f, *v = work.row(blocks + block, 0) + f;
      work.forward_h(u, plan.height, work.columns[0], work.columns[1]);
      work.forward_h(v, plan.height, work.columns[2], work.columns[3]);
      for (int set = 0; set < sets; ++set, spectrum += size, dspectrum += size)
        for (int g = 0; g < size; ++g) {
          Complex a = work.columns[set][g], b = work.columns[2 + set][g], k = spectrum[g], d = times_conj(b, a);
          dspectrum[g] = add ? dspectrum[g] + d : d;
          work.columns[set][g] = a * k;
          work.columns[2 + set][g] = times_conj(b, k);
        }
      if (dout_gate.data) work.back_h(work.columns[0], work.columns[1], u, plan.height);
      work.back_h(work.columns[2], work.columns[3], v, plan.height);
    }
  if (dout_gate.data) work.all_back_w<T>(0, dy, dout_gate, {}, {});
  work.all_back_w<T>(blocks, gate, dx, dgate.data ? x : Signal<T>{}, dgate);
}

// Spectrum of a kernel that lies periodically, displacement 0 first, with its skip on that tap, times the scale of a
// transform and back. What crosses the end of a row's period changes its sign.
void make_spectrum(const Plan& plan, const Taps<const float>& taps, const float* skip, Complex* spectrum) {
  int size = plan.size_h(), sets = plan.sets();
  long period_w = 2L * plan.size_w(), period_h = 2L * size;
  Work work(plan, sets, size);
  Vec centre = {};
  if (skip)
    for (int c = 0; c < taps.channels; ++c) centre[c] = skip[c];
  std::memset(static_cast<void*>(work.blocks), 0, sets * work.of_block * sizeof(Complex));
  for (int a = 0; a < sets * size; ++a) {
    long dh = 0, dw;
    if (plan.image && !displacement(a, period_h, taps.before_h, taps.after_h, &dh)) continue;
    auto load = [&](int b) {
      long place = plan.image ? b : long(b) * size + a, period = plan.image ? period_w : period_w * size;
      if (!displacement(place, period, taps.before_w, taps.after_w, &dw)) return Vec{};
      Vec value = taps.load(dh * taps.stride_h + dw * taps.stride_w);
      return a == 0 && b == 0 ? value + centre : dw < 0 ? -value : value;
    };
    Complex *out = work.columns[0], *even = work.row(0, a % size), *odd = work.row(sets - 1, a % size);
    work.forward_w(a, int(period_w), out, load);
    for (int f = 0; f < plan.size_w(); ++f) {
      even[f] = even[f] + out[f];
      if (plan.image) odd[f] = a < size ? odd[f] + out[f] : odd[f] - out[f];
    }
  }
  float scale = plan.scale();
  for (int f = 0; f < plan.size_w(); ++f)
    for (int set = 0; set < sets; ++set, spectrum += size) {
      Complex *in = work.row(set, 0) + f, *column = work.columns[0];
      for (int a = 0; a < size; ++a) {
        Complex value = in[a * plan.pitch()];
        value = {value.re * scale, value.im * scale};
        column[a] = set ? value * plan.twist_h[a] : value;
      }
      transform<false>(plan.fft_h, column, 1, spectrum, 1, work.buffer, work.other);
    }
}

// Adjoint of make_spectrum, less the skip, whose gradient is that of the tap in the centre
void kernel_gradient(const Plan& plan, const Complex* dspectrum, const Taps<float>& taps) {
  int size = plan.size_h(), sets = plan.sets();
  long period_w = 2L * plan.size_w(), period_h = 2L * size;
  Work work(plan, sets, size);
  for (int f = 0; f < plan.size_w(); ++f)
    for (int set = 0; set < sets; ++set, dspectrum += size) {
      Complex *out = work.row(set, 0) + f, *column = work.columns[0];
      transform<true>(plan.fft_h, dspectrum, 1, column, 1, work.buffer, work.other);
      for (int a = 0; a < size; ++a)
        out[a * plan.pitch()] = set ? times_conj(column[a], plan.twist_h[a]) : column[a];
    }
  float scale = plan.scale();
  for (int a = 0; a < sets * size; ++a) {
    long dh = 0, dw;
    if (plan.image && !displacement(a, period_h, taps.before_h, taps.after_h, &dh)) continue;
    Complex *in = work.columns[0], *even = work.row(0, a % size), *odd = work.row(sets - 1, a % size);
    for (int f = 0; f < plan.size_w(); ++f)
      in[f] = !plan.image ? even[f] : a < size ? even[f] + odd[f] : even[f] - odd[f];
    work.back_w(a, int(period_w), in, [&](int b, Vec value) {
      long place = plan.image ? b : long(b) * size + a, period = plan.image ? period_w : period_w * size;
      if (displacement(place, period, taps.before_w, taps.after_w, &dw))
        taps.store(dh * taps.stride_h + dw * taps.stride_w, value * (dw < 0 ? -scale : scale));
    });
  }
}

// ---------------------------------------------------------------- arguments

struct Kernel {  // (samples, C, H, W)
  float* data;   // of displacement 0
  long strides[4];
  int before_h, after_h, before_w, after_w;
};

template <typename T>
Taps<T> taps_of(const Kernel& kernel, int sample, int channel, int channels) {
  return {kernel.data + sample * kernel.strides[0] + channel * kernel.strides[1],
          kernel.strides[1], kernel.strides[2], kernel.strides[3],
          channels, kernel.before_h, kernel.after_h, kernel.before_w, kernel.after_w};
}

// Blocks of channels that one task reads together, as long as they stay in the cache
int group_of(const Plan& plan, int blocks, int buffers, int samples, int threads) {
  constexpr long cache = 5L << 18;
  long bytes = plan.height * plan.pitch() * long(sizeof(Complex)) * buffers;
  long most = std::max(1L, std::min(cache / bytes, 64L / LANES));
  while (most > 1 && ((blocks + most - 1) / most) * samples < 2L * threads) --most;
  return int(most);
}

// task(index) for each of them, shared by threads
template <typename Task>
void run_tasks(int tasks, int threads, Task task) {
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic)
    for (int index = 0; index < tasks; ++index) task(index);
    scratch.end_call();
  }
}

}  // namespace

extern "C" {

int hyena_lanes() { return LANES; }

void* hyena_new_plan(int image, int height, int width, int size_h, int size_w) {
  return new Plan(image, height, width, size_h, size_w);
}

void hyena_free_plan(void* plan) { delete static_cast<Plan*>(plan); }

// Signals in the order x, gate, out_gate, y
void hyena_convolve(const void* plan_, int bfloat16, int samples, int channels, const Array* arrays,
                    const void* spectrum_, int per_sample, int threads) {
  const Plan& plan = *static_cast<const Plan*>(plan_);
  int blocks = blocks_of(channels), group = group_of(plan, blocks, 1, samples, threads);
  int groups = (blocks + group - 1) / group;
  run_tasks(groups * samples, threads, [&](int task) {
    int first = task / samples * group, sample = task % samples;
    int c = first * LANES, n = std::min(group * LANES, channels - c);
    const Complex* spectrum = static_cast<const Complex*>(spectrum_) +
                              (per_sample ? long(sample) * blocks * plan.numbers() : 0) + first * plan.numbers();
    auto run = [&](auto number) {
      using T = decltype(number);
      auto at = [&](int i) { return signal<T>(arrays[i], sample, c, n); };
      convolve<T>(plan, at(0), at(1), at(2), at(3), spectrum);
    };
    bfloat16 ? run(uint16_t()) : run(float());
  });
}

// Signals in the order dy, x, gate, out_gate, dx, dgate, dout_gate; dspectrum has `parts` parts, each the sum over some
// samples in turn: all samples of a shared kernel, if there is one part, or each its own
void hyena_gradients(const void* plan_, int bfloat16, int samples, int channels, const Array* arrays,
                     const void* spectrum_, int per_sample, void* dspectrum_, int parts, int threads) {
  const Plan& plan = *static_cast<const Plan*>(plan_);
  int blocks = blocks_of(channels), group = group_of(plan, blocks, 2, parts, threads);
  int groups = (blocks + group - 1) / group;
  long whole = blocks * plan.numbers();
  run_tasks(groups * parts, threads, [&](int task) {
    int first = task / parts * group, part = task % parts;
    int c = first * LANES, n = std::min(group * LANES, channels - c);
    for (int sample = part; sample < samples; sample += parts) {
      const Complex* spectrum = static_cast<const Complex*>(spectrum_) + (per_sample ? sample * whole : 0);
      Complex* dspectrum = static_cast<Complex*>(dspectrum_) + part * whole;
      auto run = [&](auto number) {
        using T = decltype(number);
        auto at = [&](int i) { return signal<T>(arrays[i], sample, c, n); };
        gradients<T>(plan, at(0), at(1), at(2), at(3), at(4), at(5), at(6), spectrum + first * plan.numbers(),
                     dspectrum + first * plan.numbers(), sample != part);
      };
      bfloat16 ? run(uint16_t()) : run(float());
    }
  });
}

void hyena_spectrum(const void* plan_, int samples, int channels, const Kernel* kernel, const float* skip,
                    void* spectrum, int threads) {
  const Plan& plan = *static_cast<const Plan*>(plan_);
  int blocks = blocks_of(channels);
  run_tasks(blocks * samples, threads, [&](int task) {
    int c = task % blocks * LANES, n = std::min(LANES, channels - c);
    make_spectrum(plan, taps_of<const float>(*kernel, task / blocks, c, n), skip ? skip + c : nullptr,
                  static_cast<Complex*>(spectrum) + task * plan.numbers());
  });
}

void hyena_kernel_gradient(const void* plan_, int samples, int channels, const Kernel* kernel, const void* dspectrum,
                           int threads) {
  const Plan& plan = *static_cast<const Plan*>(plan_);
  int blocks = blocks_of(channels);
  run_tasks(blocks * samples, threads, [&](int task) {
    int c = task % blocks * LANES, n = std::min(LANES, channels - c);
    kernel_gradient(plan, static_cast<const Complex*>(dspectrum) + task * plan.numbers(),
                    taps_of<float>(*kernel, task / blocks, c, n));
  });
}
}
