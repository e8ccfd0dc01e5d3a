#pragma once
// Arithmetic of tensors. Other operators come from <ATen/ops/...>, one by one: <ATen/Functions.h> has two thousand of
// them, and takes a compiler longer than all that is written here.
#ifndef AT_PER_OPERATOR_HEADERS
#define AT_PER_OPERATOR_HEADERS
#endif
#include <ATen/TensorOperators.h>
