"""One capture: what it asks of torch's releases, and what it says where it fails; torch is stood in for."""

import pytest
import torch

from batch_sampler_attn.device import capturing
from batch_sampler_attn.errors import DeviceLoopError


class Stream:
    device = torch.device("cuda", 3)


@pytest.fixture
def calls(monkeypatch):
    """What is asked of torch; a capture in which an update fails cannot be ended, as on a device."""
    told = []

    class Graph:
        def register_generator_state(self, generator):
            told.append("register")

    class Capturing:
        def __init__(self, graph, **options):
            assert options["capture_error_mode"] == "thread_local"
            told.append(("in", options["pool"], options["stream"]))

        def __enter__(self):
            told.append("begin")

        def __exit__(self, kind, *rest):
            told.append("end")
            if kind is not None:
                raise RuntimeError("operation failed due to a previous error during capture")

    class Extension:
        @staticmethod
        def _cuda_endAllocateToPool(device, pool):  # noqa: N802
            told.append(("end pool", device, pool))

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Capturing)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 << 20, 80 << 20))
    monkeypatch.setattr(torch, "_C", Extension)
    return told


def failing(error):
    def update():
        raise error

    return update


def test_what_a_broken_capture_says_first_is_quoted(calls):
    error = RuntimeError("operation not permitted when stream is capturing\nand more")
    with pytest.raises(
        DeviceLoopError, match=r"graph: operation not permitted when stream is capturing\..*graph=False"
    ):
        capturing.capture(failing(error), Stream(), None, [])


def test_what_was_handled_before_it_is_not_quoted(calls):
    def update():
        try:
            raise KeyError("no such mask yet")
        except KeyError:
            raise RuntimeError("operation not permitted when stream is capturing")  # noqa: B904

    with pytest.raises(DeviceLoopError, match="not permitted"):
        capturing.capture(update, Stream(), None, [])


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), KeyboardInterrupt(), torch.OutOfMemoryError("CUDA out of memory.")]
)
def test_errors_that_say_themselves_what_is_wrong_come_through(calls, error):
    with pytest.raises(type(error)) as raised:
        capturing.capture(failing(error), Stream(), None, [])
    assert raised.value is error


@pytest.mark.parametrize(
    "said",
    ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"],
)
def test_memory_that_does_not_suffice_is_told_from_what_cannot_be_captured(calls, said):
    with pytest.raises(torch.OutOfMemoryError, match=said.partition("`")[0].strip()):
        capturing.capture(failing(RuntimeError(said)), Stream(), None, [])


def test_memory_that_did_not_suffice_is_told_though_it_came_as_an_invalidated_capture(calls):
    def update():
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    with pytest.raises(torch.OutOfMemoryError, match="previous error"):
        capturing.capture(update, Stream(), None, [])


def test_how_much_memory_was_free_is_said_where_it_may_be_that(calls):
    error = RuntimeError("operation failed due to a previous error during capture")
    with pytest.raises(DeviceLoopError, match="5 of 80 MiB were free"):
        capturing.capture(failing(error), Stream(), None, [])


@pytest.mark.parametrize(
    ("version", "is_registered", "is_ended_here"),
    [
        ("2.6.0", True, True),
        ("2.11.0+cu128", True, True),
        ("2.13.1", True, False),
        ("2.14.0a0+git1234567", False, False),
        ("3.0.0", False, False),
    ],
)
def test_what_a_release_of_torch_does_by_itself_is_left_to_it(
    calls, monkeypatch, version, is_registered, is_ended_here
):
    monkeypatch.setattr(torch, "__version__", version)
    stream = Stream()
    capturing.capture(lambda: calls.append("update"), stream, "pool", [torch.Generator(), torch.Generator()])
    assert calls == ["register"] * 2 * is_registered + [("in", "pool", stream), "begin", "update", "end"]
    calls.clear()
    with pytest.raises(ZeroDivisionError):
        capturing.capture(failing(ZeroDivisionError()), stream, "pool", [])
    assert calls == [("in", "pool", stream), "begin", "end"] + [("end pool", 3, "pool")] * is_ended_here


def test_a_pool_that_is_ended_already_or_by_another_name_is_no_error(calls, monkeypatch):
    class Refusing:
        @staticmethod
        def _cuda_endAllocateToPool(device, pool):  # noqa: N802
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    class Earlier:
        @staticmethod
        def _cuda_endAllocateCurrentStreamToPool(device, pool):  # noqa: N802
            calls.append("end pool")

    monkeypatch.setattr(torch, "__version__", "2.6.0")
    for extension in (Refusing, Earlier):
        monkeypatch.setattr(torch, "_C", extension)
        with pytest.raises(ZeroDivisionError):
            capturing.capture(failing(ZeroDivisionError()), Stream(), None, [])
    assert calls.count("end pool") == 1
