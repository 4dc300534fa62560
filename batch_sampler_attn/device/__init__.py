"""The reference GPU loop: data, order and schedule stay on the device, and repeats are decided there."""

from batch_sampler_attn.device.data import Augmentation, ResidentData
from batch_sampler_attn.device.interleave import run_interleaved, take_turns
from batch_sampler_attn.device.loop import DeviceLoop
from batch_sampler_attn.device.staged import StagedData

__all__ = ["Augmentation", "DeviceLoop", "ResidentData", "StagedData", "run_interleaved", "take_turns"]
