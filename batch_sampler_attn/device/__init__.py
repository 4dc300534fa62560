"""The device loop: data, order and schedule stay on the device, and repeats are decided there."""

from batch_sampler_attn.device.loop import DeviceLoop

__all__ = ["DeviceLoop"]
