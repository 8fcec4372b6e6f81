// The umbrella: kernels, loops and layers. What is opt-in (backends that wrap other libraries, training) has its own
// headers.
#pragma once

#include "backend/list.hpp"
#include "core/desc.hpp"
#include "core/result.hpp"
#include "core/types.hpp"
#include "core/view.hpp"
#include "kernel/describe.hpp"
#include "kernel/dump.hpp"
#include "kernel/kernel.hpp"
#include "kernel/pack.hpp"
#include "kernel/tile_scope.hpp"
#include "loops/gemm.hpp"
#include "loops/parallel_for.hpp"
#include "nn/conv.hpp"
#include "nn/mlp.hpp"
#include "nn/norm.hpp"
#include "nn/pool.hpp"
#include "nn/reorder.hpp"
#include "nn/softmax.hpp"
