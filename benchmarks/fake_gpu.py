"""A GPU that is not there: tensors "on cuda" that have sizes, and no values.

    with FakeGPU() as gpu:
        with gpu.building():                    # modules on the CPU, without memory
            model = torch.nn.Linear(1024, 1024)
        model.to("cuda")(torch.zeros(64, 1024).to("cuda")).sum().backward()
    print(gpu.peak, gpu.flops, gpu.kernels, gpu.syncs)

What is on the GPU are torch's FakeTensors, what is on the CPU computes as ever. Counted
are the bytes of live tensors, operations that would start a kernel, what they read and
write, FLOPs of matrix products, convolutions and attention, and whatever makes the host
wait for the GPU. An operation on tensors of two devices raises, as on a GPU.

Not seen: what kernels allocate for themselves, fragmentation, time, values. A number
that the host asks for is 1, and a truth is True.
"""

import collections
import contextlib
import importlib
import math
import traceback
import weakref
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from fake_autocast import Autocast
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
HERE = Path(__file__).parent
GPU, CPU, META = (torch.device(name) for name in ("cuda:0", "cpu", "meta"))
optimizer = importlib.import_module("torch.optim.optimizer")
BLOCK = 512  # bytes that torch's allocator rounds up to
COPIES = (aten._to_copy.default, aten.copy_.default)
# How many numbers they give back is known on the GPU alone.
OF_UNKNOWN_SIZE = (
    *(aten.nonzero.default, aten.masked_select.default, aten._unique2.default),
    aten.repeat_interleave.Tensor,
)
FREE = ("aten.empty", "aten.detach", "aten.lift", "aten.alias", "aten._unsafe_view")


class _WithoutDriver(FakeTensorMode):
    avoid_device_init = True  # else it would ask torch.cuda.is_available, see stand_ins


class FakeGPU(TorchDispatchMode):
    """See above. What is counted is a dict, by ``phase``, a text that may be set.

    Attributes
    ----------
    live, peak : int
        Bytes of tensors on the GPU now, and at most since ``reset``.
    peaks : dict of str to int
        The same by phase.
    flops, moved, kernels : collections.Counter
        By phase; ``moved`` are bytes, those of products left out.
    syncs : collections.Counter
        By the line of code that makes the host wait.
    """

    def __init__(self):
        super().__init__()
        self.fake = _WithoutDriver(allow_non_fake_inputs=True)
        # its notes of what it has made are weak references, and no tensor that has one
        # can change its place, as Module.to wants
        self.fake.fake_tensor_converter.set_tensor_memo = lambda real, fake: None
        self.is_building = False
        self.phase = ""
        self.live, self.storages = 0, {}
        self.reset()

    def reset(self):
        """Count from here on."""
        self.peak, self.peaks = self.live, collections.Counter()
        self.flops, self.moved = collections.Counter(), collections.Counter()
        self.kernels, self.syncs = collections.Counter(), collections.Counter()

    def __enter__(self):
        self.stack = contextlib.ExitStack()
        autocast = self.stack.enter_context(Autocast())
        clear = torch, "clear_autocast_cache", autocast.clear
        for target, name, value in [*stand_ins(), clear]:
            self.stack.enter_context(mock.patch.object(target, name, value))
        torch._C._ensureCUDADeviceGuardSet()  # asks no driver for the current GPU
        # torch.tensor(…, device="cuda") is then made here, and copied by an operation
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        self.stack.callback(torch._C._set_only_lift_cpu_tensors, before)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.stack.close()

    @contextlib.contextmanager
    def building(self):
        """New parameters, on the CPU, have no memory either: for what moves later."""
        plain = torch.nn.Parameter.__new__

        def made(kind, data=None, requires_grad=True):
            if type(data) is torch.Tensor:
                data = self.fake.from_tensor(data)
            return plain(kind, data, requires_grad)

        with mock.patch.object(torch.nn.Parameter, "__new__", made):
            self.is_building = True
            yield
        self.is_building = False

    # -- one operation -----------------------------------------------------------------

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            # torch's own code asks, as autograd does, which would look for the driver
            # (and autocast, which therefore is done in Python)
            return META if args[0].fake_device.type == "cuda" else args[0].fake_device
        tensors = [t for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)]
        device = kwargs.get("device")
        if device is not None:
            device = torch.device(device)
            if device.type == "meta" and not self.is_building:  # see above
                device = kwargs["device"] = GPU
        fake = any(isinstance(t, FakeTensor) for t in tensors)
        fake |= device is not None and device.type == "cuda"
        if not fake:
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return self._scalar(args[0])
        if func in COPIES:
            done, out = self._copy(func, args, kwargs, device)
            if done:
                return out
        with self.fake:
            if func is aten.index.Tensor:
                args = args[0], all_true(args[1])
            out = func(*args, **kwargs)
        self._count(func, args, kwargs, tensors, out)
        return out

    def _scalar(self, tensor):
        if tensor.device.type == "cuda":
            self._wait()
        if tensor.dtype is torch.bool:
            return True
        return 1.0 if tensor.is_floating_point() else 1

    def _copy(self, func, args, kwargs, device):
        """Count copies between host and GPU → (whether this is all, result)."""
        if func is aten.copy_.default:
            target, source = args[0].device, args[1]
        else:
            target, source = device or args[0].device, args[0]
        between = source.device.type, target.type
        blocking = not kwargs.get("non_blocking", len(args) > 2 and args[2])
        if between == ("cuda", "cpu"):
            if blocking:
                self._wait()
            if func is aten.copy_.default:
                return True, args[0]
            dtype = kwargs.get("dtype") or source.dtype
            return True, torch.ones(source.shape, dtype=dtype)
        if (
            between == ("cpu", "cuda")
            and blocking
            and not isinstance(source, FakeTensor)
        ):
            self._wait()
        to_itself = between == ("cuda", "cuda") and func is aten._to_copy.default
        same_type = kwargs.get("dtype") in (None, source.dtype)
        same_order = kwargs.get("memory_format") in (None, torch.preserve_format)
        if to_itself and same_type and same_order:
            return True, aten.detach.default(source)  # torch would copy nothing
        return False, None

    def _wait(self):
        self.syncs[calling_line()] += 1

    def _count(self, func, args, kwargs, tensors, out):
        made = [t for t in tree_leaves(out) if torch.is_tensor(t)]
        on_gpu = [t for t in made if t.device.type == "cuda"]
        for tensor in on_gpu:
            self._track(tensor)
        masks = [t for t in tensors if t.dtype is torch.bool]
        if func in OF_UNKNOWN_SIZE or (masks and func is aten.index.Tensor):
            self._wait()
        of_gpu = on_gpu or any(t.device.type == "cuda" for t in tensors)
        if not of_gpu or func.is_view or str(func).startswith(FREE):
            return
        self.kernels[self.phase] += 1
        flops = flops_of(func, args, kwargs, out)
        self.flops[self.phase] += flops
        if not flops:
            different = {id(t): t for t in [*tensors, *made]}.values()
            self.moved[self.phase] += sum(map(bytes_of, different))

    def _track(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.storages:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK

        def freed(_, key=key, size=size):
            self.live -= size
            del self.storages[key]

        self.storages[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)
        self.peaks[self.phase] = max(self.peaks[self.phase], self.live)


def all_true(indices):
    """Indices of which masks are as the numbers of all places."""
    found = []
    for index in indices:
        if index is None or index.dtype is not torch.bool:
            found.append(index)
        else:
            places = torch.zeros(index.numel(), dtype=torch.int64, device=index.device)
            found += [places] * index.dim()
    return found


def flops_of(func, args, kwargs, out):
    """Of a product, a convolution or attention; else 0."""
    if func is aten.convolution_backward.default:
        # torch's own count takes no notice of groups
        grad, _, weight, *_, wanted = args
        return 2 * grad.numel() * math.prod(weight.shape[1:]) * sum(wanted[:2])
    count = flop_registry.get(func.overloadpacket)
    return 0 if count is None else count(*args, **kwargs, out_val=out)


def bytes_of(tensor):
    """What a kernel reads or writes of a tensor: an expanded axis once."""
    sizes = zip(tensor.shape, tensor.stride())
    return tensor.element_size() * math.prod(n for n, step in sizes if step)


def calling_line():
    """file:line of the innermost code that is neither torch nor of these stand-ins."""
    for frame in reversed(traceback.extract_stack()):
        path = frame.filename
        own = path.startswith(str(HERE / "fake_"))
        if not own and "/torch/" not in path and "contextlib" not in path:
            return f"{'/'.join(path.split('/')[-2:])}:{frame.lineno} {frame.name}"
    return "?"


# -- what torch would choose with a driver ---------------------------------------------


def stand_ins():
    """(object, name, value): what says that there is one GPU, an Ampere or later."""
    cuda = torch.cuda
    return [
        (cuda, "_lazy_init", lambda: None),
        (cuda, "is_available", lambda: True),
        (cuda, "device_count", lambda: 1),
        (cuda, "is_current_stream_capturing", lambda: False),
        (cuda, "current_device", lambda: 0),
        (cuda, "set_device", lambda device: None),
        (cuda, "synchronize", lambda device=None: None),
        (cuda, "is_bf16_supported", lambda including_emulation=True: True),
        (cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (fake_tensor, "init_gpu_context", lambda device: None),
        # many tensors in one kernel, as for tensors that are on a GPU
        (torch.nn.utils.clip_grad, "_has_foreach_support", lambda *_: True),
        (optimizer, "_foreach_supported_types", [torch.nn.Parameter, FakeTensor]),
        (F, "scaled_dot_product_attention", attention(F.scaled_dot_product_attention)),
        (F, "dropout", dropout(F.dropout)),
        # one copy for all numbers; FakeTensor's own asks for one after another
        (FakeTensor, "tolist", lambda tensor: tensor.cpu().tolist()),
    ]


def attention(plain):
    """torch's memory-efficient kernel, which every GPU has, with and without a bias."""

    def chosen(
        query,
        key,
        value,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        enable_gqa=False,
    ):
        if query.device.type != "cuda":
            return plain(
                *(query, key, value, attn_mask, dropout_p, is_causal),
                scale=scale,
                enable_gqa=enable_gqa,
            )
        bias = attn_mask
        if bias is not None:
            if bias.dtype is torch.bool:
                zero = torch.zeros((), dtype=query.dtype, device=query.device)
                bias = torch.where(bias, zero, float("-inf"))
            if any(step % 8 for step in bias.stride()[:-1]):  # kernels want it aligned
                frames = bias.shape[-1]
                bias = F.pad(bias, (0, -frames % 16))[..., :frames]
            bias = bias.expand(*query.shape[:-1], key.shape[-2])
        tensors = [t for t in (query, key, value, bias) if t is not None]
        types = {t.dtype for t in tensors}
        if len(types) > 1:
            raise RuntimeError(f"attention of {types}, expected one type")
        graph = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        return aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, graph, dropout_p, is_causal, scale=scale
        )[0]

    return chosen


def dropout(plain):
    """One kernel, which keeps a mask of bytes."""

    def chosen(input, p=0.5, training=True, inplace=False):
        if input.device.type != "cuda" or inplace or not (training and p):
            return plain(input, p, training, inplace)
        return torch.native_dropout(input, p, True)[0]

    return chosen
