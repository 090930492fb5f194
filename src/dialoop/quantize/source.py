"""Source: a checkpoint read one decoder layer at a time, and what its calibration rows come to.

The model is made without weights, on torch's meta device; a layer gets its weights from the files
when its turn comes, and is thrown away after. The states that the next layer reads are kept. The
arguments that a decoder gives its layers (positions, bounds) are those that its own forward pass
gives to stand-ins.

T tokens of a packed row, D width.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dialoop.core.errors import UserError
from dialoop.models import attention, checkpoint
from dialoop.models.families import register_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from transformers import PreTrainedModel

    from dialoop.quantize.rows import PackedRow


@dataclass(slots=True)
class Part:
    """A packed row on its way through the layers."""

    states: Tensor
    """(1, T, D) what the next layer reads."""
    arguments: tuple[dict[str, Any], ...]
    """What the decoder gives each layer beside the states."""


class Layer:
    """One decoder layer with its weights.

    Args:
        number: from 0.
        prefix: its path in the checkpoint, with the dot.
        module: transformers' own module, filled.
        tensors: all its tensors in float32, by their names in it.
        dtype: of the checkpoint, in which scales are stored.
        head_width: channels of an attention head.
    """

    def __init__(
        self,
        number: int,
        prefix: str,
        module: nn.Module,
        tensors: dict[str, Tensor],
        dtype: torch.dtype,
        head_width: int,
    ) -> None:
        self.number, self.prefix, self.module, self.dtype = number, prefix, module, dtype
        self.tensors, self.head_width = tensors, head_width
        self._changed: set[str] = set()

    @property
    def linears(self) -> dict[str, nn.Linear]:
        """Its linear layers by their names in it, in the order of their making."""
        return {n: m for n, m in self.module.named_modules() if isinstance(m, nn.Linear)}

    def weight(self, name: str) -> Tensor:
        """(E, D) float32 weight of a linear layer."""
        return self.tensors[f"{name}.weight"]

    def change(self, name: str, value: Tensor) -> None:
        """Give a tensor another value, here and in the module that computes."""
        self.tensors[name] = value.float()
        self._changed.add(name)
        self.set_dense(name, value)

    def stored(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor as it is written: as it was read, or with the value that it was given."""
        return self.tensors[name].to(tensor.dtype) if name in self._changed else tensor

    def set_dense(self, name: str, value: Tensor) -> None:
        """Let the module compute with another value."""
        with torch.no_grad():
            self.module.get_parameter(name).copy_(value)

    @torch.no_grad()
    def forward(self, part: Part) -> Tensor:
        """(1, T, D) what the layer makes of a part's states."""
        out = self.module(part.states, **part.arguments[self.number])
        return out[0] if isinstance(out, tuple) else out


class _StandIn(nn.Module):
    """In a layer's place: notes the arguments and passes the states on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Any] = {}

    def forward(self, states: Tensor, **arguments: Any) -> Tensor:
        self.seen = arguments
        return states


class Source:
    """A causal language model's checkpoint.

    Args:
        folder: of whole weights, not quantized.
        dtype: in which layers compute.
        device: where.

    Raises:
        UserError: the family is unknown, or its weights do not lie as its modules do.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - heavy

        register_all()
        attention.register()
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        self._paths = checkpoint.weight_files(folder)
        for path in self._paths:
            file = self._stack.enter_context(safe_open(path, "pt"))
            self._files |= dict.fromkeys(file.keys(), file)
        self.config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            self.model: PreTrainedModel = AutoModelForCausalLM.from_config(
                self.config, dtype=dtype, attn_implementation=attention.NAME
            ).eval()
        self.decoder: Any = self.model.get_decoder()
        self.dtype, self.device = dtype, device
        config = self.config
        heads = config.num_attention_heads
        self._head_width: int = getattr(config, "head_dim", None) or config.hidden_size // heads
        self._layers: list[nn.Module] = list(self.decoder.layers)
        names = {module: name for name, module in self.model.named_modules()}
        self.prefix = f"{names[self.decoder.layers]}."
        self._decoder_prefix = f"{names[self.decoder]}."
        self._stand_ins = [_StandIn() for _ in self._layers]
        self.decoder.set_submodule("layers", nn.ModuleList(self._stand_ins))
        self._fill_rest()

    def __len__(self) -> int:
        """Decoder layers."""
        return len(self._layers)

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(E, D) of every linear layer of the decoder, by its path in the checkpoint."""
        return {
            f"{self.prefix}{number}.{name}": (module.out_features, module.in_features)
            for number, layer in enumerate(self._layers)
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear)
        }

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored, on the CPU.

        Raises:
            UserError: the checkpoint has none of that name.
        """
        if name not in self._files:
            raise UserError(
                f"the checkpoint has no `{name}`, which its family's layers need",
                hint="copy or pull the checkpoint again; families whose weights are joined on"
                " loading (mixtures of experts) cannot be quantized yet",
            )
        return self._files[name].get_tensor(name)

    def sizes(self) -> dict[str, checkpoint.Entry]:
        """What every tensor takes in the files, by name."""
        return {entry.name: entry for file in self._paths for entry in checkpoint.entries(file)}

    def names_in(self, number: int) -> list[str]:
        """The names of a layer's tensors in the checkpoint."""
        prefix = f"{self.prefix}{number}."
        return [name for name in self._files if name.startswith(prefix)]

    def names_outside(self) -> list[str]:
        """The names of all tensors that belong to no decoder layer."""
        return [name for name in self._files if not name.startswith(self.prefix)]

    def layer(self, number: int) -> Layer:
        """A decoder layer with its weights on the device."""
        module = copy.deepcopy(self._layers[number])
        prefix = f"{self.prefix}{number}."
        stored = {name: self.read(prefix + name).to(self.device) for name in module.state_dict()}
        kinds = {t.dtype for t in stored.values() if t.dim() == 2}
        dtype = torch.float32 if torch.float32 in kinds else next(iter(kinds))
        filled = {name: tensor.to(self.dtype, copy=True) for name, tensor in stored.items()}
        module.load_state_dict(filled, assign=True)
        wide = {name: tensor.float() for name, tensor in stored.items()}
        module.requires_grad_(requires_grad=False)
        return Layer(number, prefix, module, wide, dtype, self._head_width)

    @torch.no_grad()
    def begin(self, rows: list[PackedRow]) -> list[Part]:
        """What the first layer reads of packed rows."""
        return [self._begin(row) for row in rows]

    def _begin(self, row: PackedRow) -> Part:
        inputs = row.inputs(self.device)
        self.decoder(**inputs)
        arguments = tuple(stand_in.seen for stand_in in self._stand_ins)
        return Part(self.model.get_input_embeddings()(inputs["input_ids"]), arguments)

    @torch.no_grad()
    def finish(self, states: Tensor) -> Tensor:
        """(T, D) normalised states, which the head reads, of the last layer's (1, T, D)."""
        return self.decoder.norm(states)[0]

    def head(self) -> Tensor:
        """(V, D) the output head."""
        head: Any = self.model.get_output_embeddings()
        return head.weight

    def _fill_rest(self) -> None:
        """Give every module outside the layers its weights, or its computed buffers."""
        embedding = self.model.get_input_embeddings()
        for name, module in list(self.model.named_modules()):
            if not name or isinstance(module, _StandIn):
                continue
            own = dict(module.named_parameters(recurse=False))
            if own:
                found = {key: self._outside(f"{name}.{key}", module, embedding) for key in own}
                module.load_state_dict(found, assign=True)
            elif any(buffer.is_meta for buffer in module.buffers(recurse=False)):
                made: Any = type(module)
                self.model.set_submodule(name, made(config=self.config).to(self.device))

    def _outside(self, name: str, module: nn.Module, embedding: nn.Module) -> Tensor:
        """A tensor outside the layers; a head that is not stored is the embedding."""
        head = self.model.get_output_embeddings()
        if module is head and name not in self._files and self.config.tie_word_embeddings:
            return embedding.weight  # pyright: ignore[reportReturnType]
        return self.read(name).to(self.device, self.dtype)


def passes(layer: Layer, parts: list[Part]) -> None:
    """Let every part through a layer, in place."""
    for part in parts:
        part.states = layer.forward(part)


def inputs_of(layer: Layer, parts: list[Part]) -> Iterator[tuple[str, Tensor]]:
    """Every linear layer's name and input (T, D), in the order of computing, part by part."""
    seen: list[tuple[str, Tensor]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: seen.append((name, inputs[0]))

    hooks = [m.register_forward_pre_hook(note(name)) for name, m in layer.linears.items()]
    try:
        for part in parts:
            layer.forward(part)
            yield from seen
            seen.clear()
    finally:
        for hook in hooks:
            hook.remove()
