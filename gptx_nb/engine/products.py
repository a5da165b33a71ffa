"""Make the matrix products of a model that only answers faster: weights in bfloat16, and laid out once for the CPU.

Only the products are in bfloat16, those of attention over packed texts among them (`packing`): what is added up from
layer to layer, norms, positions and softmax stay float32, and so do logits: those of a vocabulary are looked at in
bfloat16 only to tell which few of them can be the largest. So less is rounded than in a model that is wholly in
bfloat16, and nothing more than in training under autocast.

A model in bfloat16 can be computed with in float32 for a while (`exactly`). For that, the 16 bits of each weight that
bfloat16 has no room for are kept beside it: together they take what float32 takes, and where a model was saved in
bfloat16 there are none to keep. (A model that writes, and whose head is its embedding, keeps its
vocabulary in bfloat16 besides.)

Most base models were saved in bfloat16, and fine-tuning moves a weight by less than lies between two numbers of it:
rounded to the nearest one, most weights are again what they were, and much of what was learnt is gone. Such weights
are rounded up as often as what was added says, by thresholds that are spread evenly (dithering; stochastic rounding,
Gupta et al. 2015, arXiv:1502.02551, with thresholds that stay the same). smollm2-135m, every weight tuned on 1,000
sentences of SST-2, 200 joined sentences: differences of two logits are off by 0.04 to 0.07 instead of 0.39, as a root
mean square. Weights that could be any float32 have no number that they tend back to, and go to the nearest one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

# The attribute of a block of attention that names the dtype of its own products, for attention of ours to look at.
ATTENDS_IN = "attends_in"

Thresholds = tuple[torch.Tensor, torch.Tensor]  # of rows and of columns, int16 (rows, 1) and (1, columns): see `split`

# Layers of one block that are given the same states: one product is quicker than two or three small ones.
# What comes of the gated ones is multiplied and rounded again before the next product, so it need not be wider.
ATTENTION = ("q_proj", "k_proj", "v_proj")
GATED = ("gate_proj", "up_proj")
TOGETHER = (ATTENTION, GATED)


def prepare(model: PreTrainedModel, dtype: torch.dtype, *, writes: bool = False) -> None:
    """Replace the linear layers of `model`, in place, by ones that compute in `dtype` (float32 or bfloat16).

    They take float32 and give it, but for the gated ones. The output head (of a language model or a classifier) stays
    float32: its logits are compared with each other, and bfloat16 has 3 digits. Of a model that `writes` in bfloat16
    on a CPU, and whose head is its embedding, a second one in bfloat16 stands beside it, to find out which logits need
    be computed (`largest`). Move the model to its device before; its weights can no longer be trained, saved or moved.
    """
    head: Any = model.get_output_embeddings() or getattr(model, "score", None)
    embedding: Any = model.get_input_embeddings()
    # The plain weights of a head are needed to search it. They are there anyway where they are the embedding's.
    weight: torch.Tensor = embedding.weight
    is_tied = getattr(head, "weight", None) is weight
    searches = writes and is_tied and weight.device.type == "cpu" and dtype is torch.bfloat16 and _can_lay_out(dtype)
    for parent in list(model.modules()):
        layers = {name: layer for name, layer in parent.named_children() if type(layer) in (torch.nn.Linear, Conv1D)}
        for names in TOGETHER:
            if all(name in layers for name in names):
                joint = _Joint([layers.pop(name) for name in names], dtype, names == GATED)
                for number, name in enumerate(names):
                    setattr(parent, name, _Part(joint, number))
        if hasattr(parent, "layer_idx"):  # attention, whose own products are as those of its layers
            setattr(parent, ATTENDS_IN, dtype)
        for name, layer in layers.items():
            product = Product([layer], torch.float32 if layer is head else dtype)
            if layer is head and searches and product.bias is None:
                product.search = _Largest(product, weight.detach())
            setattr(parent, name, product)


@contextlib.contextmanager
def exactly(model: torch.nn.Module) -> Iterator[None]:
    """Let the products of `model` be float32 ones for a while, for all who compute with it.

    Each product puts its float32 weights together anew, so this is for many rows at once, or for few calls.
    """
    attending = {each: getattr(each, ATTENDS_IN) for each in model.modules() if hasattr(each, ATTENDS_IN)}
    every = [each for each in model.modules() if isinstance(each, Product)]
    for block in attending:
        setattr(block, ATTENDS_IN, torch.float32)
    for product in every:
        product.exact = True
    try:
        yield
    finally:
        _rooms.clear()
        for block, dtype in attending.items():
            setattr(block, ATTENDS_IN, dtype)
        for product in every:
            product.exact = False


def split(whole: torch.Tensor, thresholds: Thresholds | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return float32 numbers as bfloat16 and what that leaves out: 16 bits, int16, or None if all are zero.

    Numbers go to the nearest one of bfloat16, what lies midway to the larger. With `thresholds` (`thresholds_for`) what
    has to lie above a number to be the next one is not the half, but anything from none to all, by the place; of
    numbers of bfloat16 beside others 1 in 65,536 becomes the next one.
    """
    bits = whole.view(torch.int32)
    if not bool((bits & 0xFFFF).any()) or not bool(whole.isfinite().all()):  # what is no number stays none
        return whole.to(torch.bfloat16), None
    shift = 0 if thresholds is None else (thresholds[0] + thresholds[1]).int()  # 16 bits, which wrap around
    high = (bits + (2**15 - shift)) >> 16
    return high.short().view(torch.bfloat16), (bits - (high << 16) - shift).short()


def thresholds_for(whole: torch.Tensor) -> Thresholds | None:
    """Return by what float32 weights (rows, columns) are dithered; None for those that go to the nearest number.

    They are the same ones for any weights of a shape. The nearest number of bfloat16 is, in the mean, a quarter of what
    lies between two of them away. Weights that began at such numbers are nearer, those that began at numbers of float16
    are nearer to these, of which there are eight times as many: by more than three standard errors.
    """
    low = (whole.view(torch.int32) & 0xFFFF).float() / 2**16
    least = 1 / 4 - 3 * (1 / 48 / max(1, whole.numel())) ** 0.5

    def distance(times: int) -> float:
        within = (low * times).remainder(1)
        return float(torch.minimum(within, 1 - within).mean())

    if min(distance(1), distance(8)) > least:
        return None
    draw = torch.Generator().manual_seed(0)
    rows, columns = (torch.randint(-(2**15), 2**15, (size,), generator=draw).short() for size in whole.shape)
    return rows[:, None].to(whole.device), columns[None].to(whole.device)


def joined_in(count: int, thresholds: Thresholds | None) -> int:
    """Return how many float32 numbers of room it takes to put `count` of them together (`joined`)."""
    return count if thresholds is None else count + -(-count // 2)


def joined(
    rounded: torch.Tensor,
    rest: torch.Tensor | None,
    thresholds: Thresholds | None = None,
    room: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the float32 numbers that `split` has taken apart, to the last bit; in `room`, if given.

    Read as whole numbers of 32 bits, those of bfloat16 have zeros where what they leave out belongs.
    """
    count = rounded.numel()
    if room is None:
        room = torch.empty(joined_in(count, thresholds), device=rounded.device)
    whole = room[:count].view(rounded.shape)
    whole.copy_(rounded)
    if rest is not None:
        bits = whole.view(torch.int32).add_(rest)
        if thresholds is not None:
            shift = room[count:].view(torch.int16)[:count].view(rounded.shape)
            bits.add_(torch.add(*thresholds, out=shift))
    return whole


# By thread, where it puts float32 weights together: in new memory each time, most of the time would go into its pages
# (17.8 ms instead of 2.7 for 1536 x 576 weights, one core with AMX).
_rooms: dict[int, torch.Tensor] = {}


def _room(values: int) -> torch.Tensor:
    me = threading.get_ident()
    found = _rooms.get(me)
    if found is None or len(found) < values:
        found = _rooms[me] = torch.empty(values)
    return found


def dtype_of(model: PreTrainedModel) -> torch.dtype:
    """Return the dtype of the products of `model`, or of its weights where they are as they were."""
    every = {each.dtype for each in model.modules() if isinstance(each, Product)}
    return torch.bfloat16 if torch.bfloat16 in every else model.dtype


def size(model: torch.nn.Module) -> int:
    """Return the bytes that the weights and buffers of `model` take, those of its products included."""
    own = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    products = {id(each): each for each in model.modules() if isinstance(each, Product)}.values()
    return own + sum(each.bytes + (each.search.bytes if each.search else 0) for each in products)


class Product(torch.nn.Module):
    """What linear layers (`torch.nn.Linear`, GPT-2's `Conv1D`) compute side by side, in `dtype`.

    float32 (..., in) to float32 (..., out), where out is the sum of the layers' outputs; or to `dtype`, where that
    `gives_lower`. While it is `exact`, all is float32.
    """

    gives_lower = False
    search: _Largest | None = None  # of an output head: see `largest`

    def __init__(self, layers: Sequence[torch.nn.Module], dtype: torch.dtype) -> None:
        super().__init__()
        weights = [_weight(layer).float() for layer in layers]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0].contiguous()
        self.dtype, self.sizes = dtype, [len(each) for each in weights]
        self.exact = False
        self._rest: torch.Tensor | None = None
        self._thresholds: Thresholds | None = None
        if dtype is torch.bfloat16:
            thresholds = thresholds_for(weight)
            weight, self._rest = split(weight, thresholds)
            self._thresholds = None if self._rest is None else thresholds
        biases = [_bias(layer, size, weight.device) for layer, size in zip(layers, self.sizes, strict=True)]
        self.bias = torch.cat(biases) if any(bool(bias.any()) for bias in biases) else None
        # torch lays weights out in blocks when it compiles a model for inference ("freezing"), with these two
        # operators: measured here at 1.2 to 1.9 times the speed of plain ones for 1 to 16 rows. They are not public,
        # so there is a way without them.
        self._is_laid_out = weight.device.type == "cpu" and _can_lay_out(dtype)
        self._weight: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight) if self._is_laid_out else weight
        # A layout of its own does not tell its size. It is no buffer: it could be neither saved nor moved.
        self.bytes = sum(each.nbytes for each in (weight, self._rest, self.bias) if each is not None)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        product = self._multiply(states)
        result: torch.Tensor = product if self.gives_lower else product.float()
        return result if self.bias is None else (result + self.bias).to(result.dtype)

    def lower(self, states: torch.Tensor) -> torch.Tensor:
        """Return the same in the dtype in which it is computed, to be added to what is wider; with a bias, the same."""
        return self._multiply(states) if self.bias is None else self(states)

    def _multiply(self, states: torch.Tensor) -> torch.Tensor:
        exact = self.exact  # another thread may change it meanwhile
        given: Any = states.to(torch.float32 if exact else self.dtype)
        if exact and self.dtype is torch.bfloat16:
            rounded = self._weight.to_dense() if self._is_laid_out else self._weight
            on_cpu = rounded.device.type == "cpu"
            room = _room(joined_in(rounded.numel(), self._thresholds)) if on_cpu else None
            product = torch.nn.functional.linear(given, joined(rounded, self._rest, self._thresholds, room))
        elif self._is_laid_out:
            product = torch.ops.mkldnn._linear_pointwise(given, self._weight, None, "none", [], "")
        else:
            product = torch.nn.functional.linear(given, self._weight)
        return product


class _Largest:
    """Finds the largest logits of an output head, most of them looked at in bfloat16 alone.

    By the Cauchy-Schwarz inequality a logit is off by no more than the lengths of what is rounded away of the states
    and of the weights allow: for all but a few tokens that is too little to be the largest. The few are computed in
    float32; where there may be more than a few, all are. (smollm2-135m, two cores with AMX, 16 rows: 2.1 ms instead of
    6.9; 2 tokens in the mean of 1,000 states, at most 26.)
    """

    FEW = 32
    AT_ONCE = 4096  # tokens, whose weights are looked at together at first

    def __init__(self, head: Product, weight: torch.Tensor) -> None:
        """`weight` (vocabulary, width) of `head`, float32 or bfloat16, is not copied."""
        rounded = weight.to(torch.bfloat16)
        self._head, self._weight = head, weight
        self._rounded = torch.ops.mkldnn._reorder_linear_weight(rounded)
        self.bytes = rounded.nbytes
        pieces = list(zip(weight.split(self.AT_ONCE), rounded.split(self.AT_ONCE), strict=True))
        self._longest = max(float(low.float().norm(dim=-1).max()) for _, low in pieces)
        self._most_lost = max(float((whole - low.float()).norm(dim=-1).max()) for whole, low in pieces)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return the token (rows,) with the largest float32 logit for each of `states` (rows, width), float32."""
        low = states.to(torch.bfloat16)
        rough: torch.Tensor = torch.ops.mkldnn._linear_pointwise(low, self._rounded, None, "none", [], "")
        values, few = rough.topk(min(self.FEW, rough.shape[-1]), dim=-1)
        best, last = values[:, 0].float(), values[:, -1].float()
        few = few.sort(dim=-1).values  # of equal logits the first is taken, as `max` does
        logits, place = torch.linalg.vecdot(self._weight[few].float(), states[:, None]).max(dim=-1)
        found = few.gather(1, place[:, None])[:, 0]
        lengths = states.norm(dim=-1)
        summed = states.shape[-1] * torch.finfo(torch.float32).eps * lengths * self._longest  # rounding of the sums
        lost = (states - low.float()).norm(dim=-1) * self._longest + lengths * self._most_lost
        written = torch.maximum(best.abs(), last.abs()) / 2**8  # a logit itself is rounded to bfloat16, too
        is_open = best - last <= 2 * (lost + summed + written)
        if few.shape[-1] < rough.shape[-1] and bool(is_open.any()):
            logits[is_open], found[is_open] = self._head(states[is_open]).max(dim=-1)
        check_finite(logits)
        return found


def check_finite(logits: torch.Tensor) -> None:
    """Raise FloatingPointError if one of the largest `logits` of rows is not finite."""
    if not bool(torch.isfinite(logits).all()):
        raise FloatingPointError("the model gives no finite numbers")


def largest(head: Any, states: torch.Tensor) -> torch.Tensor | None:
    """Return the token (rows,) with the largest float32 logit of `head` for each of `states` (rows, width).

    None where `prepare` has set up no way that is quicker than all logits. Raises FloatingPointError for logits that
    are not finite.
    """
    return head.search(states) if isinstance(head, Product) and head.search is not None else None


class _Joint(Product):
    """A product whose parts are asked for one after another, with the same states."""

    def __init__(self, layers: Sequence[torch.nn.Module], dtype: torch.dtype, lower: bool = False) -> None:
        super().__init__(layers, dtype)
        self.gives_lower = lower
        self._asked = threading.local()  # several threads may compute at once

    def part(self, number: int, states: torch.Tensor) -> torch.Tensor:
        asked = self._asked
        if states is not getattr(asked, "states", None) or number not in asked.missing:
            asked.states = states
            asked.missing = dict(enumerate(self(states).split(self.sizes, dim=-1)))
        found: torch.Tensor = asked.missing.pop(number)
        if not asked.missing:
            asked.states = None  # keeps no memory
        return found


def joint_of(parent: torch.nn.Module, names: tuple[str, ...]) -> Product | None:
    """Return the product that computes those layers of `parent` side by side; None where each has its own."""
    first = getattr(parent, names[0], None)
    return first.joint if isinstance(first, _Part) else None


class _Part(torch.nn.Module):
    def __init__(self, joint: _Joint, number: int) -> None:
        super().__init__()
        self.joint, self._number = joint, number

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.joint.part(self._number, states)


def _weight(layer: Any) -> torch.Tensor:
    weight: torch.Tensor = layer.weight.detach()
    return weight.T if isinstance(layer, Conv1D) else weight


def _bias(layer: Any, size: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(size, device=device) if layer.bias is None else layer.bias.detach().float()


def _can_lay_out(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        weight, states = torch.ones(2, 3, dtype=dtype), torch.ones(1, 3, dtype=dtype)
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight)
        found = torch.ops.mkldnn._linear_pointwise(states, laid_out, None, "none", [], "")
        if not torch.equal(laid_out.to_dense(), weight):
            return False
    except (AttributeError, RuntimeError):  # another version of torch, or a CPU without the units
        return False
    return bool(torch.equal(found, torch.full((1, 2), 3, dtype=dtype)))
