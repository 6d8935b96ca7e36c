/* gpu.h on the CUDA runtime, which is linked in and finds the driver (libcuda.so.1) when it is first asked. */
#include "kernels/cuda/gpu.h"

#include <cuda_runtime.h>
#include <stdio.h>

#ifndef MX_CUDA_ARCH_NAMES
#define MX_CUDA_ARCH_NAMES "of one compute capability" /* the build says which: "sm_80, sm_90a" */
#endif
enum { LEAST_DRIVER = 580 }; /* NVIDIA's number for the first that can do CUDA 13 */

/* ---- what went wrong ----------------------------------------------------------------------------------------------
 */

/* After one of these nothing works in this process any more. */
static bool ends_everything(cudaError_t e) {
    return e == cudaErrorIllegalAddress || e == cudaErrorMisalignedAddress || e == cudaErrorLaunchFailure ||
           e == cudaErrorHardwareStackError || e == cudaErrorIllegalInstruction || e == cudaErrorInvalidPc ||
           e == cudaErrorInvalidAddressSpace || e == cudaErrorAssert || e == cudaErrorLaunchTimeout ||
           e == cudaErrorECCUncorrectable || e == cudaErrorNvlinkUncorrectable || e == cudaErrorContained;
}

/* "GPU: WHAT: ..." for an error of a call. It is also kept for cudaGetLastError, which must forget it: the next
 * mx_gpu_check is about launches. */
static mx_status fail(cudaError_t e, const char *what, mx_error *error) {
    cudaGetLastError();
    mx_status status = MX_INVALID_STATE;
    const char *advice = "";
    if (e == cudaErrorMemoryAllocation) {
        status = MX_NO_MEMORY;
    } else if (e == cudaErrorInvalidValue) {
        status = MX_INVALID_ARGUMENT;
    } else if (e == cudaErrorNoKernelImageForDevice || e == cudaErrorInvalidDeviceFunction) {
        status = MX_UNSUPPORTED;
        advice = ": this plugin has kernels for " MX_CUDA_ARCH_NAMES " alone (meson's -Dcuda-arch)";
    } else if (ends_everything(e)) {
        advice = ": the program must be started again; if it comes back, `nvidia-smi -q` and the kernel's log (Xid) "
                 "tell whether the GPU is well";
    } else if (e == cudaErrorDevicesUnavailable) {
        status = MX_UNSUPPORTED;
        advice = ": another program has the GPU for itself (`nvidia-smi` shows it)";
    }
    return mx_fail(error, status, "GPU: %s: %s (%s)%s", what, cudaGetErrorString(e), cudaGetErrorName(e), advice);
}

static mx_status result(cudaError_t e, const char *what, mx_error *error) {
    return e == cudaSuccess ? MX_OK : fail(e, what, error);
}

/* Why no GPU can be used at all. */
static mx_status fail_count(cudaError_t e, mx_error *error) {
    cudaGetLastError();
    int driver = 0, runtime = 0;
    const cudaError_t known = cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    cudaGetLastError();
    if (known != cudaSuccess || driver == 0)
        return mx_fail(error, MX_UNSUPPORTED,
                       "no NVIDIA driver is installed (libcuda.so.1, in a container: is it started with its GPUs?): "
                       "version %d or newer is needed",
                       LEAST_DRIVER);
    if (e == cudaErrorInsufficientDriver || driver / 1000 < runtime / 1000)
        return mx_fail(error, MX_UNSUPPORTED,
                       "the NVIDIA driver knows CUDA %d.%d, and mxrun's kernels need %d.%d: install driver %d or newer",
                       driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10, LEAST_DRIVER);
    if (e == cudaErrorNoDevice)
        return mx_fail(error, MX_UNSUPPORTED,
                       "the NVIDIA driver sees no GPU (`nvidia-smi -L` lists them; CUDA_VISIBLE_DEVICES hides some)");
    return mx_fail(error, MX_UNSUPPORTED, "no GPU can be used: %s (%s)", cudaGetErrorString(e), cudaGetErrorName(e));
}

/* ---- devices ------------------------------------------------------------------------------------------------------
 */

static thread_local bool overlapping;

void mx_gpu_overlap(bool on) {
    int device = 0, major = 0;
    overlapping = on && cudaGetDevice(&device) == cudaSuccess &&
                  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                  major >= 9;
}

bool mx_gpu_overlapping(void) {
    return overlapping;
}

static __global__ void probe() {}

mx_status mx_gpu_count(int *out, mx_error *error) {
    *out = 0;
    const cudaError_t e = cudaGetDeviceCount(out);
    if (e != cudaSuccess) *out = 0;
    return *out > 0 ? MX_OK : fail_count(e == cudaSuccess ? cudaErrorNoDevice : e, error);
}

static mx_status check_number(int device, mx_error *error) {
    int count;
    const mx_status status = mx_gpu_count(&count, error);
    if (status != MX_OK) return status;
    if (device >= 0 && device < count) return MX_OK;
    return mx_fail(error, MX_UNSUPPORTED, "there is no GPU %d: the driver sees %d, counted from 0", device, count);
}

static int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : 0;
}

mx_status mx_gpu_get_info(int device, mx_gpu_info *out, mx_error *error) {
    *out = {};
    mx_status status = check_number(device, error);
    if (status != MX_OK) return status;
    cudaDeviceProp p;
    status = result(cudaGetDeviceProperties(&p, device), "asking for its properties", error);
    if (status != MX_OK) return status;
    snprintf(out->name, sizeof out->name, "%s", p.name);
    out->major = p.major;
    out->minor = p.minor;
    out->multiprocessors = p.multiProcessorCount;
    out->memory = p.totalGlobalMem;
    out->shared_most = (uint64_t)attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    int before;
    size_t free_now, all;
    status = result(cudaGetDevice(&before), "asking for the device in use", error);
    if (status == MX_OK) status = result(cudaSetDevice(device), "choosing it", error);
    if (status != MX_OK) return status;
    status = result(cudaMemGetInfo(&free_now, &all), "asking for its free memory", error);
    if (status == MX_OK) out->memory_free = free_now;
    cudaSetDevice(before);
    return status;
}

mx_status mx_gpu_use(int device, mx_error *error) {
    static thread_local int looked_at = -1; /* so that every step may ask: this is the answer of the last time */
    int now;
    if (looked_at == device && cudaGetDevice(&now) == cudaSuccess && now == device) return MX_OK;
    mx_status status = check_number(device, error);
    if (status == MX_OK) status = result(cudaSetDevice(device), "choosing it", error);
    if (status != MX_OK) return status;
    cudaFuncAttributes unused;
    const cudaError_t e = cudaFuncGetAttributes(&unused, probe);
    if (e == cudaErrorNoKernelImageForDevice || e == cudaErrorInvalidDeviceFunction ||
        e == cudaErrorUnsupportedPtxVersion) {
        cudaGetLastError();
        const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
        const int minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
        return mx_fail(error, MX_UNSUPPORTED, "GPU %d is sm_%d%d, and this plugin has kernels for %s alone: %s", device,
                       major, minor, MX_CUDA_ARCH_NAMES,
                       major < 8 ? "mxrun needs compute capability 8.0 or higher"
                                 : "build it with meson's -Dcuda-arch for that one");
    }
    if (e == cudaSuccess) looked_at = device;
    return result(e, "looking for its kernels", error);
}

/* ---- memory -------------------------------------------------------------------------------------------------------
 */

mx_status mx_gpu_alloc(void **out, size_t bytes, const char *what, mx_error *error) {
    *out = nullptr;
    const cudaError_t e = cudaMalloc(out, bytes ? bytes : 1);
    if (e == cudaSuccess) return MX_OK;
    if (e != cudaErrorMemoryAllocation) return fail(e, what, error);
    cudaGetLastError();
    size_t free_now = 0, all = 0;
    cudaMemGetInfo(&free_now, &all);
    cudaGetLastError();
    return mx_fail(error, MX_NO_MEMORY, "no memory on the GPU for %s: %zu bytes are needed, %zu of %zu are free", what,
                   bytes, free_now, all);
}

void mx_gpu_free(void *p) {
    if (p && cudaFree(p) != cudaSuccess) cudaGetLastError(); /* what went wrong before, and was told then */
}

mx_status mx_gpu_alloc_host(void **out, size_t bytes, const char *what, mx_error *error) {
    *out = nullptr;
    const cudaError_t e = cudaHostAlloc(out, bytes ? bytes : 1, cudaHostAllocPortable | cudaHostAllocMapped);
    if (e == cudaSuccess) return MX_OK;
    if (e != cudaErrorMemoryAllocation) return fail(e, what, error);
    cudaGetLastError();
    return mx_fail(error, MX_NO_MEMORY,
                   "no pinned memory for %s: %zu bytes are needed (`ulimit -l` and the container bound it)", what,
                   bytes);
}

void mx_gpu_free_host(void *p) {
    if (p && cudaFreeHost(p) != cudaSuccess) cudaGetLastError();
}

/* ---- streams ------------------------------------------------------------------------------------------------------
 */

static cudaStream_t cuda(mx_gpu_stream *s) {
    return (cudaStream_t)s;
}

static cudaEvent_t cuda(mx_gpu_event *e) {
    return (cudaEvent_t)e;
}

static cudaGraphExec_t cuda(mx_gpu_graph *g) {
    return (cudaGraphExec_t)g;
}

mx_status mx_gpu_stream_create(mx_gpu_stream **out, mx_error *error) {
    cudaStream_t s = nullptr;
    const cudaError_t e = cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    *out = (mx_gpu_stream *)s;
    return result(e, "creating a stream", error);
}

void mx_gpu_stream_destroy(mx_gpu_stream *s) {
    if (!s) return;
    cudaStreamSynchronize(cuda(s));
    cudaStreamDestroy(cuda(s));
    cudaGetLastError();
}

mx_status mx_gpu_stream_wait(mx_gpu_stream *s, mx_error *error) {
    return result(cudaStreamSynchronize(cuda(s)), "waiting for its work", error);
}

/* Whether a copy may read or write it later on: memory of a device, or pinned. */
static bool lasts(const void *p) {
    cudaPointerAttributes a;
    if (cudaPointerGetAttributes(&a, p) != cudaSuccess) {
        cudaGetLastError();
        return false;
    }
    return a.type != cudaMemoryTypeUnregistered;
}

mx_status mx_gpu_copy(void *to, const void *from, size_t bytes, mx_gpu_stream *s, mx_error *error) {
    if (bytes == 0) return MX_OK;
    const bool later = lasts(to) && lasts(from);
    if (!later) {
        cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
        const mx_status status = result(cudaStreamIsCapturing(cuda(s), &capture), "asking whether it captures", error);
        if (status != MX_OK) return status;
        if (capture != cudaStreamCaptureStatusNone)
            return mx_fail(error, MX_INVALID_STATE,
                           "a copy of %zu bytes is captured whose memory is neither the GPU's nor pinned", bytes);
    }
    cudaError_t e = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, cuda(s));
    if (e == cudaSuccess && !later) e = cudaStreamSynchronize(cuda(s));
    return result(e, "copying", error);
}

mx_status mx_gpu_fill(void *to, int byte, size_t bytes, mx_gpu_stream *s, mx_error *error) {
    if (bytes == 0) return MX_OK;
    return result(cudaMemsetAsync(to, byte, bytes, cuda(s)), "filling memory", error);
}

mx_status mx_gpu_check(const char *what, mx_error *error) {
    return result(cudaGetLastError(), what, error);
}

/* ---- events -------------------------------------------------------------------------------------------------------
 */

mx_status mx_gpu_event_create(mx_gpu_event **out, mx_error *error) {
    cudaEvent_t event = nullptr;
    const cudaError_t e = cudaEventCreate(&event);
    *out = (mx_gpu_event *)event;
    return result(e, "creating an event", error);
}

void mx_gpu_event_destroy(mx_gpu_event *e) {
    if (e && cudaEventDestroy(cuda(e)) != cudaSuccess) cudaGetLastError();
}

mx_status mx_gpu_event_record(mx_gpu_event *e, mx_gpu_stream *s, mx_error *error) {
    return result(cudaEventRecord(cuda(e), cuda(s)), "recording an event", error);
}

mx_status mx_gpu_event_wait(mx_gpu_event *e, mx_error *error) {
    return result(cudaEventSynchronize(cuda(e)), "waiting for an event", error);
}

mx_status mx_gpu_event_follow(mx_gpu_stream *s, mx_gpu_event *e, mx_error *error) {
    return result(cudaStreamWaitEvent(cuda(s), cuda(e), 0), "letting a stream wait for an event", error);
}

mx_status mx_gpu_event_ms(mx_gpu_event *from, mx_gpu_event *to, float *out, mx_error *error) {
    return result(cudaEventElapsedTime(out, cuda(from), cuda(to)), "the time between two events", error);
}

/* ---- graphs -------------------------------------------------------------------------------------------------------
 */

/* Other threads may meanwhile allocate and wait: only what this one does is bound by the capture. */
mx_status mx_gpu_capture_begin(mx_gpu_stream *s, mx_error *error) {
    return result(cudaStreamBeginCapture(cuda(s), cudaStreamCaptureModeThreadLocal), "beginning to capture", error);
}

mx_status mx_gpu_capture_end(mx_gpu_stream *s, mx_gpu_graph **out, mx_error *error) {
    *out = nullptr;
    cudaGraph_t recorded = nullptr;
    mx_status status = result(cudaStreamEndCapture(cuda(s), &recorded), "capturing a graph", error);
    cudaGraphExec_t g = nullptr;
    if (status == MX_OK) status = result(cudaGraphInstantiate(&g, recorded, 0), "making a graph", error);
    if (recorded) cudaGraphDestroy(recorded);
    if (status != MX_OK) return status;
    /* So that the first launch takes no longer than the others. */
    status = result(cudaGraphUpload(g, cuda(s)), "bringing a graph to the device", error);
    if (status != MX_OK) {
        cudaGraphExecDestroy(g);
        return status;
    }
    *out = (mx_gpu_graph *)g;
    return MX_OK;
}

mx_status mx_gpu_graph_launch(mx_gpu_graph *g, mx_gpu_stream *s, mx_error *error) {
    return result(cudaGraphLaunch(cuda(g), cuda(s)), "launching a graph", error);
}

void mx_gpu_graph_destroy(mx_gpu_graph *g) {
    if (g && cudaGraphExecDestroy(cuda(g)) != cudaSuccess) cudaGetLastError();
}
