#pragma once
// Errors with a message put together from its parts. What Python sees: std::invalid_argument is a ValueError, TypeError
// a TypeError, std::runtime_error a RuntimeError.
#include <sstream>
#include <stdexcept>
#include <string>

namespace sparse_accel {

struct TypeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace sparse_accel

#define SPARSE_ACCEL_THROW_UNLESS(Error, condition, ...) \
  do {                                                   \
    if (!(condition)) [[unlikely]]                       \
      throw Error(::sparse_accel::message(__VA_ARGS__)); \
  } while (false)
#define CHECK_VALUE(condition, ...) SPARSE_ACCEL_THROW_UNLESS(std::invalid_argument, condition, __VA_ARGS__)
#define CHECK_TYPE(condition, ...) SPARSE_ACCEL_THROW_UNLESS(::sparse_accel::TypeError, condition, __VA_ARGS__)
#define CHECK_RUN(condition, ...) SPARSE_ACCEL_THROW_UNLESS(std::runtime_error, condition, __VA_ARGS__)
