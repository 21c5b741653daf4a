#include "cuda_host.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace cuda_host {
namespace {

constexpr size_t kStack = 128 * 1024;

enum class State { ready, at_barrier, in_warp, ended };

struct Fiber {
  ucontext_t context;
  dim3 thread;
  State state = State::ready;
  unsigned mask = 0;
  alignas(16) unsigned char payload[kPayload];
  Exchanged received;
  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
  };
  std::vector<Copy> copies;
};

std::mt19937_64 random_order;
std::vector<Fiber> fibers;
std::vector<unsigned char> stacks;
Fiber* running = nullptr;
ucontext_t scheduler;
const std::function<void()>* kernel = nullptr;
void* shared = nullptr;
sigjmp_buf fault;
std::vector<std::pair<void*, size_t>> mappings;

[[noreturn]] void fail(const std::string& what) {
  const auto place = [](const dim3& at) {
    return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
  };
  throw std::runtime_error("block " + place(blockIdx) + ", thread " + place(threadIdx) + ": " + what);
}

void start() {
  (*kernel)();
  running->state = State::ended;
  swapcontext(&running->context, &scheduler);
}

void wait(State state) {
  running->state = state;
  swapcontext(&running->context, &scheduler);
}

void on_fault(int) {
  siglongjmp(fault, 1);
}

// Lets lanes go on whose whole mask has come to the same warp-wide operation.
bool release_warps() {
  bool released = false;
  for (size_t first = 0; first < fibers.size(); first += kWarp) {
    const size_t size = std::min<size_t>(kWarp, fibers.size() - first);
    for (size_t i = 0; i < size; ++i) {
      const unsigned mask = fibers[first + i].mask;
      if (fibers[first + i].state != State::in_warp) {
        continue;
      }
      const auto among = [&](size_t lane) { return (mask >> lane & 1) != 0; };
      bool complete = (mask >> i & 1) != 0;
      for (size_t lane = 0; lane < size; ++lane) {
        const Fiber& other = fibers[first + lane];
        complete &=
            !among(lane) || other.state == State::ended || (other.state == State::in_warp && other.mask == mask);
      }
      if (!complete) {
        continue;
      }
      for (size_t lane = 0; lane < size; ++lane) {
        for (size_t other = 0; other < size && among(lane); ++other) {
          std::memcpy(fibers[first + lane].received.payload[other], fibers[first + other].payload, kPayload);
        }
      }
      for (size_t lane = 0; lane < size; ++lane) {
        if (among(lane) && fibers[first + lane].state == State::in_warp) {
          fibers[first + lane].state = State::ready;
        }
      }
      released = true;
    }
  }
  return released;
}

void run_block(dim3 block) {
  const size_t count = size_t{block.x} * block.y * block.z;
  fibers.resize(count);
  stacks.resize(count * kStack);
  std::vector<Fiber*> order;
  for (size_t i = 0; i < count; ++i) {
    Fiber& fiber = fibers[i];
    fiber.thread = dim3(i % block.x, i / block.x % block.y, i / block.x / block.y);
    fiber.state = State::ready;
    fiber.copies.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks.data() + i * kStack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
    order.push_back(&fiber);
  }
  while (true) {
    std::shuffle(order.begin(), order.end(), random_order);
    // Some warps rest, so that others get ahead of them.
    const uint64_t resting = random_order();
    bool ran = false;
    for (Fiber* fiber : order) {
      if (fiber->state == State::ready) {
        ran = true;
        const size_t warp = (fiber - fibers.data()) / kWarp;
        if ((resting >> warp % 64 & 1) == 0) {
          running = fiber;
          threadIdx = fiber->thread;
          swapcontext(&scheduler, &fiber->context);
        }
      }
    }
    if (release_warps() || ran) {
      continue;
    }
    bool ended = true;
    for (Fiber& fiber : fibers) {
      ended &= fiber.state == State::ended;
      if (fiber.state == State::in_warp) {
        threadIdx = fiber.thread;
        fail("waits in a warp-wide operation that some lane of its mask never comes to");
      }
    }
    if (ended) {
      return;
    }
    for (Fiber& fiber : fibers) {
      fiber.state = fiber.state == State::at_barrier ? State::ready : fiber.state;
    }
  }
}

// False where a thread touched an inaccessible page. A function of its own: `sigsetjmp` returns twice.
[[gnu::noinline]] bool run_guarded_block(dim3 block) {
  if (sigsetjmp(fault, 1) != 0) {
    return false;
  }
  run_block(block);
  return true;
}

}  // namespace

void set_seed(uint64_t seed) {
  random_order.seed(seed);
}

void* shared_memory() {
  return shared;
}

void barrier() {
  wait(State::at_barrier);
}

const Exchanged& exchange(unsigned mask, const void* payload, size_t size) {
  std::memcpy(running->payload, payload, size);
  running->mask = mask;
  wait(State::in_warp);
  return running->received;
}

void copy_later(void* to, const void* from, size_t bytes) {
  std::memset(to, 0xff, bytes);
  running->copies.push_back({to, from, bytes});
}

void finish_copies() {
  for (const Fiber::Copy& copy : running->copies) {
    if (copy.from == nullptr) {
      std::memset(copy.to, 0, copy.bytes);
    } else {
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
  }
  running->copies.clear();
}

void* guarded(size_t bytes) {
  const size_t page = sysconf(_SC_PAGESIZE), pages = (bytes + 15) / page + 1, size = (pages + 1) * page;
  void* mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  auto* base = static_cast<unsigned char*>(mapped);
  if (mapped == MAP_FAILED || mprotect(base + pages * page, page, PROT_NONE) != 0) {
    throw std::runtime_error("no memory");
  }
  mappings.emplace_back(mapped, size);
  std::memset(base, 0xff, pages * page);
  return base + pages * page - (bytes + 15) / 16 * 16;
}

void release() {
  for (const auto& [base, size] : mappings) {
    munmap(base, size);
  }
  mappings.clear();
}

cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  constexpr size_t kMostThreads = 1024;
  if (size_t{grid.x} * grid.y * grid.z == 0 || size_t{block.x} * block.y * block.z > kMostThreads) {
    return last_error = cudaErrorInvalidConfiguration;
  }
  if (const cudaError_t error = call(); error != cudaSuccess) {
    return error;
  }
  kernel = &thread;
  gridDim = grid;
  blockDim = block;
  std::vector<dim3> blocks;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blocks.emplace_back(x, y, z);
      }
    }
  }
  std::shuffle(blocks.begin(), blocks.end(), random_order);
  shared = guarded(shared_bytes);
  struct sigaction action{}, before;
  action.sa_handler = on_fault;
  action.sa_flags = SA_NODEFER;
  sigaction(SIGSEGV, &action, &before);
  struct Restore {
    const struct sigaction& before;
    ~Restore() {
      sigaction(SIGSEGV, &before, nullptr);
    }
  } restore{before};
  for (const dim3& at : blocks) {
    blockIdx = at;
    std::memset(shared, 0xff, shared_bytes);
    if (!run_guarded_block(block)) {
      fail("touches memory beyond an end");
    }
  }
  return cudaSuccess;
}

}  // namespace cuda_host
