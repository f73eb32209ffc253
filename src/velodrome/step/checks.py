"""Checks of the first batch, and of all targets when they lie in memory: refused before the first update, with the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from velodrome.errors import ArgumentError, DataError, VelodromeError
from velodrome.step.eager import split_batch

if TYPE_CHECKING:
    from velodrome.step.losses import Loss

__all__ = [
    "check_finite",
    "check_input_fits_model",
    "check_loss_value",
    "check_outcome",
    "explain_late_failure",
    "hint_at_device_assert",
]

_MAX_INPUTS = 4
_DEVICE_ASSERT = "device-side assert"
_DEVICE_ASSERT_HINT = (
    "A kernel on the GPU met an index out of range: most often a label that the model has no output for, or a token that the embedding has no "
    "row for. Kernels run later than the line that started them, so the line in the traceback may be an innocent one. Run again with "
    'CUDA_LAUNCH_BLOCKING=1 in the environment to see the guilty line, or with device="cpu" to see the number too. This process cannot use the '
    "GPU any more: start it anew."
)


def check_outcome(
    loss: Loss, output: Any, target: Any, *, all_targets: Tensor | None = None, role: str = "train"
) -> None:
    """Refuse targets that the loss would misread or crash on.

    Args:
        loss: what is known of it decides what is checked; an unknown function is left alone.
        output: of the first batch.
        target: of the first batch.
        all_targets: of the whole dataset, when it is in memory: then the first bad index is the dataset's.
        role: "train" or "val", for the message.
    Raises:
        DataError: dtype, shape, range or NaN.
    Cost: a wait for the device, once a run and data set.
    """
    if not isinstance(output, Tensor) and loss.kind != "other":
        raise DataError(
            f"The model returned a {type(output).__name__}; {loss.name} wants a tensor. Return the tensor alone, or give step_fn= "
            f"with which you compute the loss yourself."
        )
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return
    output = output.detach()
    if loss.kind == "classes":
        _check_classes(
            loss, output, target, target if all_targets is None else all_targets, role, whole=all_targets is not None
        )
    elif loss.kind in ("equal_shape", "probability"):
        _check_numbers(
            loss, output, target, target if all_targets is None else all_targets, role, whole=all_targets is not None
        )
    if loss.name in ("nll", "kl_div"):
        _check_log_probabilities(loss, output)


def check_loss_value(loss: object, *, origin: str) -> None:
    """Refuse a loss that cannot be backpropagated.

    Raises:
        ArgumentError: no tensor, not a scalar, or no gradient; says where it came from.
    """
    if not isinstance(loss, Tensor):
        raise ArgumentError(f"{origin} gave a {type(loss).__name__} as loss. It must be a scalar tensor.")
    if loss.numel() != 1:
        raise ArgumentError(f"{origin} gave a loss of shape {tuple(loss.shape)}. It must be a scalar: take its mean().")
    if not loss.requires_grad:
        raise ArgumentError(
            f"{origin} gave a loss without a gradient. Do not detach() it, do not wrap it in no_grad(), and use a trainable model."
        )


def check_finite(tensor: Tensor, *, what: str) -> None:
    """Refuse NaN and infinity in data, with the first sample that has one. Cost: one pass over the data, one wait."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    # A sum is one pass without a mask; only when it is not finite (or overflowed) does the exact search follow.
    if torch.isfinite(tensor.sum()):  # SYNC: checks run once a source
        return
    bad = ~torch.isfinite(tensor.reshape(len(tensor), -1)).all(dim=1)
    count = int(bad.sum())  # SYNC: only when something is wrong
    if count:
        first = int(bad.nonzero()[0])  # SYNC: only when something is wrong
        raise DataError(
            f"{what} holds NaN or infinity in {count} of {len(tensor)} samples, the first is sample {first}. "
            f"Every number must be finite: clean or drop these samples.",
            index=first,
            count=count,
        )


def check_input_fits_model(model: nn.Module, batch: Any, error: Exception) -> VelodromeError | None:
    """Explain a failed first forward pass by what the batch holds and what the model expects; None when nothing is known."""
    if "deterministic implementation" in str(error):  # asked for by the user; torch's own words name the operation
        return None
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "torch._functorch")):
        return ArgumentError(
            f'torch.compile cannot compile the model for the first batch. Leave compile out (engine="eager"), or mend what it names. '
            f"{type(error).__name__}: {error}"
        )
    parameter = next(model.parameters(), None)
    inputs = _input_tensors(batch)
    if parameter is None or not inputs:
        return None
    told = [f"{name} is {_describe(tensor)}" for name, tensor in inputs[:_MAX_INPUTS]]
    more = f", and {len(inputs) - _MAX_INPUTS} more" if len(inputs) > _MAX_INPUTS else ""
    facts = f"{', '.join(told)}{more}, the model's first weight is {_describe(parameter)}"
    if _DEVICE_ASSERT in str(error):
        return DataError(f"The model failed on the first batch: {facts}. {_DEVICE_ASSERT_HINT}")
    if any(tensor.device != parameter.device for _, tensor in inputs):
        return DataError(f"The first batch does not fit the model: {facts}. All must be on one device. ({error})")
    numbers = [tensor for _, tensor in inputs if tensor.is_floating_point()]
    if parameter.is_floating_point() and any(tensor.dtype != parameter.dtype for tensor in numbers):
        return DataError(
            f"The first batch does not fit the model: {facts}. Convert the data with .to({parameter.dtype}). ({error})"
        )
    if not numbers and "dtype" in str(error).lower():
        return DataError(
            f"The first batch does not fit the model: {facts}. Convert the data with .float() first. ({error})"
        )
    return DataError(f"The model failed on the first batch: {facts}. {type(error).__name__}: {error}")


def _input_tensors(batch: Any) -> list[tuple[str, Tensor]]:
    """Return the tensors that the model gets of a batch, with what to call each."""
    try:
        inputs, _ = split_batch(batch)
    except DataError:
        inputs = batch
    if isinstance(inputs, Tensor):
        return [("the input", inputs)]
    if isinstance(inputs, Mapping):
        named = [(f"{name!r}", part) for name, part in inputs.items()]
    elif isinstance(inputs, (tuple, list)):
        named = [(f"input {index}", part) for index, part in enumerate(inputs)]
    else:
        named = []
    return [(name, part) for name, part in named if isinstance(part, Tensor)]


def _check_classes(loss: Loss, output: Tensor, target: Tensor, targets: Tensor, role: str, *, whole: bool) -> None:
    if output.ndim < 1 or (output.ndim == 1 and target.ndim > 0):
        raise DataError(
            f"{loss.name} got an output of shape {tuple(output.shape)}. It wants one score a class: (batch, classes, ...)."
        )
    classes = output.shape[1] if output.ndim > 1 else output.shape[0]
    if target.is_floating_point():
        if loss.name == "cross_entropy" and target.shape == output.shape and target.ndim > 1:
            return  # class probabilities
        if (
            loss.name == "cross_entropy"
            and target.ndim == output.ndim > 1
            and len(target) == len(output)
            and target.shape[1] > 1
        ):
            raise DataError(
                f"cross_entropy got {role} targets of shape {tuple(target.shape)}, as probabilities of {target.shape[1]} classes have, for outputs of "
                f"shape {tuple(output.shape)}, {classes} classes. Give the model as many outputs, or correct what makes the targets "
                f"(num_classes of MixUp and CutMix)."
            )
        raise DataError(
            f"{loss.name} got {target.dtype} {role} targets of shape {tuple(target.shape)}. "
            f"It wants class indices of dtype int64: convert them with .long(), or use mse or bce for numbers."
        )
    if target.dtype != torch.int64:
        raise DataError(
            f"{loss.name} got {target.dtype} {role} targets. It wants class indices of dtype int64: convert them with .long()."
        )
    expected = output.shape[:1] + output.shape[2:]
    if target.shape != expected:
        hint = (
            " Remove the extra dimension with .squeeze(1)."
            if target.shape == (*expected, 1) or target.shape[:1] + target.shape[2:] == expected
            else ""
        )
        raise DataError(
            f"{loss.name} got {role} targets of shape {tuple(target.shape)} for outputs of shape {tuple(output.shape)}. "
            f"It wants {tuple(expected)}.{hint}"
        )
    bad = (targets != loss.ignore_index) & ((targets < 0) | (targets >= classes))
    if bool(bad.any()):  # SYNC: checks run once a source
        position = bad.reshape(len(bad), -1).any(dim=1).nonzero()  # SYNC: only when something is wrong
        index = int(position[0])
        label = int(targets[index][bad[index]].reshape(-1)[0] if targets.ndim > 1 else targets[index])
        where = f"sample {index}" if whole else f"sample {index} of the first batch"
        raise DataError(
            f"{role} label {label} at {where} is out of range ({len(position)} of {len(targets)} samples are; "
            f"labels go from {int(targets.min())} to {int(targets.max())}). "
            f"The model has {classes} outputs, so labels must be 0..{classes - 1}: "
            f"relabel the data{_more_outputs(int(targets.max()), classes)}.",
            index=index,
            label=label,
            num_classes=classes,
        )


def _more_outputs(largest: int, classes: int) -> str:
    return f", or give the model {largest + 1} outputs" if largest >= classes else ""


def _check_log_probabilities(loss: Loss, output: Tensor) -> None:
    """A loss over log-probabilities takes logits without a word, and gives nonsense."""
    largest = float(output.detach().max()) if output.numel() else 0.0  # SYNC: once a source
    if largest > 1e-3:
        raise DataError(
            f"{loss.name} got outputs up to {largest:g}. It wants log-probabilities, which are never above 0: end the model with "
            f"LogSoftmax{', or use cross_entropy on the outputs as they are' if loss.name == 'nll' else ''}."
        )


def explain_late_failure(error: Exception, loss: Loss | None, batch: Any, *, where: str) -> DataError | None:
    """Explain an error of a later batch, when it is one that a first-batch check would have explained; None otherwise.

    Args:
        error: what the forward pass raised.
        loss: what is known of it.
        batch: the one that failed.
        where: which phase and batch, for the message.
    """
    try:
        target = split_batch(batch)[1]
    except DataError:
        target = None
    if isinstance(error, IndexError) and "out of bounds" in str(error) and isinstance(target, Tensor):
        smallest, largest = int(target.min()), int(target.max())  # SYNC: the run has failed
        return DataError(
            f"{where}: {str(error).rstrip('.')}; the labels of this batch go from {smallest} to {largest}. "
            f"Labels must be 0 up to the number of outputs less one: relabel the data, or give the model more outputs."
        )
    if isinstance(error, ValueError) and "Expected more than 1 value per channel" in str(error):
        return DataError(
            f"{where} has one sample, and BatchNorm cannot train on one. Use another batch_size, so that the last batch has at "
            f"least two samples, or drop_last=True. ({error})"
        )
    return None


def hint_at_device_assert(error: BaseException) -> None:
    """Add a note to an error that a CUDA kernel reported by an assertion: what it means, and how to find the place."""
    is_told = any(
        _DEVICE_ASSERT_HINT in note for note in getattr(error, "__notes__", ())
    ) or _DEVICE_ASSERT_HINT in str(error)
    if _DEVICE_ASSERT in str(error) and not is_told:
        error.add_note(_DEVICE_ASSERT_HINT)


def _check_numbers(loss: Loss, output: Tensor, target: Tensor, targets: Tensor, role: str, *, whole: bool) -> None:
    if output.shape != target.shape:
        try:
            result = f"they would broadcast to {tuple(torch.broadcast_shapes(output.shape, target.shape))}, a wrong loss in silence"
        except RuntimeError:
            result = "they cannot be compared"
        hint = ""
        if output.ndim == target.ndim + 1 and output.shape[-1] == 1:
            hint = " Use target.unsqueeze(1)." if target.ndim == 1 else " Use target.unsqueeze(-1)."
        elif target.ndim == output.ndim + 1 and target.shape[-1] == 1:
            hint = " Use target.squeeze(-1), or give the model an output dimension of 1."
        raise DataError(
            f"{loss.name} got outputs of shape {tuple(output.shape)} and {role} targets of shape {tuple(target.shape)}: {result}. "
            f"Their shapes must be equal.{hint}",
            output_shape=tuple(output.shape),
            target_shape=tuple(target.shape),
        )
    if not target.is_floating_point():
        raise DataError(
            f"{loss.name} got {target.dtype} {role} targets from {int(targets.min())} to {int(targets.max())}. It wants floating-point numbers: convert them with .float()."
        )
    check_finite(targets, what=f"{role} targets")
    if loss.kind == "probability":
        bad = (targets < 0) | (targets > 1)
        if bool(bad.any()):  # SYNC: checks run once a source
            index = int(bad.reshape(len(bad), -1).any(dim=1).nonzero()[0])  # SYNC: only when something is wrong
            where = f"sample {index}" if whole else f"sample {index} of the first batch"
            raise DataError(
                f"{loss.name} got {role} targets from {float(targets.min()):g} to {float(targets.max()):g}; the first bad one is {where}. "
                f"They must lie in 0..1: use labels 0 and 1.",
                index=index,
            )
    if loss.wants_probabilities and bool(((output < 0) | (output > 1)).any()):  # SYNC: once a source
        raise DataError(
            f"bce got outputs from {float(output.min()):g} to {float(output.max()):g}. They must lie in 0..1: "
            f'end the model with a Sigmoid, or use loss="bce_with_logits".'
        )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} on {tensor.device}"
