"""The reference GPU loop: data, order and schedule stay on the device, and repeats are decided there."""

from batch_sampler_attn.device.data import Augmentation, ResidentData, StagedData
from batch_sampler_attn.device.interleave import run_interleaved, take_turns
from batch_sampler_attn.device.loop import DeviceLoop

__all__ = ["Augmentation", "DeviceLoop", "ResidentData", "StagedData", "run_interleaved", "take_turns"]
