// SHA-256 as FIPS 180-4 defines it.
#ifndef EDGEVIT_SHA256_H_
#define EDGEVIT_SHA256_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace edgevit {

class Sha256 {
 public:
  void add(const void* data, size_t size) {
    const auto* from = static_cast<const uint8_t*>(data);
    bytes_ += size;
    if (held_) {  // fill up what was begun
      const size_t part = std::min(size, kBlock - held_);
      std::memcpy(block_.data() + held_, from, part);
      held_ += part;
      from += part;
      size -= part;
      if (held_ < kBlock) return;
      mix(block_.data());
      held_ = 0;
    }
    for (; size >= kBlock; from += kBlock, size -= kBlock) mix(from);
    if (size) std::memcpy(block_.data(), from, size);
    held_ = size;
  }

  std::string hex() {  // of all that was added; nothing can be added behind it
    const uint64_t bits = 8 * bytes_;
    block_[held_++] = 0x80;
    if (held_ > kBlock - sizeof bits) {
      std::fill(block_.begin() + held_, block_.end(), uint8_t{0});
      mix(block_.data());
      held_ = 0;
    }
    std::fill(block_.begin() + held_, block_.end(), uint8_t{0});
    for (size_t i = 0; i < sizeof bits; ++i) block_[kBlock - 1 - i] = static_cast<uint8_t>(bits >> 8 * i);
    mix(block_.data());
    std::string text;
    for (const uint32_t word : state_)
      for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
    return text;
  }

 private:
  static uint32_t turned(uint32_t word, int bits) { return word >> bits | word << (32 - bits); }

  void mix(const uint8_t* block) {
    static constexpr uint32_t kRounds[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t w[64];
    for (int i = 0; i < 16; ++i)
      w[i] = uint32_t{block[4 * i]} << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; ++i) {
      const uint32_t far = w[i - 15], near = w[i - 2];
      w[i] = w[i - 16] + (turned(far, 7) ^ turned(far, 18) ^ far >> 3) + w[i - 7] +
             (turned(near, 17) ^ turned(near, 19) ^ near >> 10);
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (int i = 0; i < 64; ++i) {
      const uint32_t first = h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + kRounds[i] + w[i];
      const uint32_t second = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    const uint32_t added[] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state_[i] += added[i];
  }

  static constexpr size_t kBlock = 64;
  std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, kBlock> block_{};
  size_t held_ = 0;
  uint64_t bytes_ = 0;
};

}  // namespace edgevit

#endif  // EDGEVIT_SHA256_H_
