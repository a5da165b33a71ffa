"""Let a model compute with weights in bfloat16 while training adds its steps to float32 ones.

Nothing is cast from step to step, gradients and activations take half the memory. Positions (rotary frequencies, which
are buffers) stay as they are.
"""

from __future__ import annotations

import torch

from gptx_nb.engine.optimizer import MasterAdamW


class Lowered:
    """The weights of `model` in `dtype`, until `restore`. `masters` are the float32 values of those that are trained.

    A weight that stays as it is has float32 values beside it only if `dtype` does not hold them exactly: most base
    models were saved in bfloat16.
    """

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        self._whole: dict[torch.nn.Parameter, torch.Tensor] = {}
        # What is in 4 bits has integers for its weights, and stays so.
        self._all = [each for each in model.parameters() if each.is_floating_point()]
        self.trained = [each for each in model.parameters() if each.requires_grad]
        for parameter in self._all:
            whole = parameter.detach()
            lowered = whole.to(dtype)
            if parameter.requires_grad or not torch.equal(lowered.float(), whole):
                self._whole[parameter] = whole
            parameter.data = lowered

    @property
    def masters(self) -> list[torch.Tensor]:
        return [self._whole[each] for each in self.trained]

    @property
    def beside(self) -> int:
        """Bytes of the float32 values of weights that stay as they are; the masters are the optimiser's."""
        return sum(whole.nbytes for each, whole in self._whole.items() if not each.requires_grad)

    def optimizer(self, learning_rate: float, weight_decay: float, betas: tuple[float, float]) -> MasterAdamW:
        """Return AdamW on the masters, which renews the weights at every step."""
        return MasterAdamW(self.trained, self.masters, learning_rate, weight_decay, betas)

    def restore(self) -> None:
        """Make all weights float32 again: what training has made of them, and what they were where it has not."""
        for parameter in self._all:
            parameter.data = self._whole.get(parameter, parameter.detach()).float()
