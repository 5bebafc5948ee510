"""Everything here that needs private methods or attributes of HF's Trainer, under public names.

Seen in transformers 5.x. No other module may use them, and a test fails if a release changes one.
"""

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from dialogkit.engine.adapter_checkpoints import complete_adapter, has_adapter, load_adapter
from dialogkit.engine.batches import parts_of
from dialogkit.engine.clipping import clip_gradients, gradient_norm

# Where WANDB_MODE is offline, transformers prints a line to stdout, which belongs to results.
with redirect_stdout(StringIO()):
    from transformers import Trainer


class OpenTrainer(Trainer):
    """HF's Trainer with an exact norm of the gradients, adapters, and hooks that it does not offer.

    Each hook does what HF does unless it is overridden.
    """

    # HF's norm is torch's float32 one, which is up to 6.5e-4 too small on a CPU.
    def _clip_grad_norm(self, model: Any) -> Any:
        self.accelerator.unscale_gradients()
        return clip_gradients(model.parameters(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is not None:
            return grad_norm
        self.accelerator.unscale_gradients()  # nothing was clipped
        return gradient_norm(model.parameters())

    # Accelerate has no scaler for a CPU, where it would train in float32 without a word.
    def scale_loss(self, scaler: torch.amp.GradScaler) -> None:
        """Scale the loss by a scaler, whose state is saved with checkpoints."""
        # Loading the optimizer of a sharded model makes a step before any loss.
        scaler.scale(torch.ones((), device=self.args.device))
        self.accelerator.scaler, self.accelerator.native_amp = scaler, True

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self.accelerator.scaler is not None:  # a run may be forced to resume in another precision
            super()._load_scaler(checkpoint)

    # HF compares each label on the device, and wants a second copy of them to know that none is shifted.
    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        labels = (part["labels"] for batch in batch_samples for part in parts_of(batch))
        own = torch.full((), sum(map(len, labels)), device=device)
        return self.accelerator.gather(own).sum() if self.args.world_size > 1 else own

    # HF waits for every copy to the device.
    def _prepare_input(self, data: Any) -> Any:
        if isinstance(data, torch.Tensor) and self.args.device.type == "cuda":
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    # HF has no hook before and after a checkpoint is written that may refuse it, or make it valid.
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Save a checkpoint of the present step."""
        super()._save_checkpoint(self.model, None)

    # HF loads whatever it finds, and adapters only through a wrapper of peft's.
    def _load_best_model(self) -> None:
        self.load_best_model()

    def load_best_model(self) -> None:
        """Load the weights of the best checkpoint into the model."""
        super()._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.load_checkpoint(Path(resume_from_checkpoint), model)

    def load_checkpoint(self, folder: Path, model: Any = None) -> None:
        """Load the weights of a checkpoint into the model, or into the one given; of an adapter, only these."""
        if has_adapter(self.model):
            load_adapter(self.model, folder)
        else:
            super()._load_from_checkpoint(str(folder), model)

    # HF saves the configuration of an adapter without the model it belongs to.
    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.save_weights(Path(output_dir or self.args.output_dir), state_dict)

    def save_weights(self, folder: Path, weights: dict[str, Any] | None) -> None:
        """Save the model, or only its adapter, as a transformers folder, with its own weights or those given."""
        super()._save(str(folder), weights)
        if has_adapter(self.model) and self.args.should_save:
            complete_adapter(self.model, folder)

    @property
    def device_batch_size(self) -> int:
        """Dialogs of a micro-batch on this rank."""
        return int(self._train_batch_size)

    # HF forgets at a resume which losses it has not logged yet.
    @property
    def unlogged_loss(self) -> float:
        """Sum of the losses since the last logged step."""
        return float(self._tr_loss)

    def restore_log_window(self, unlogged_loss: float, logged_step: int) -> None:
        """Restore the losses that are not logged yet, when training begins."""
        self._tr_loss += unlogged_loss
        self._globalstep_last_logged: int = logged_step

    def evaluate_for_best(self) -> None:
        """Evaluate as HF does at a step that is due, and note whether the model is the best so far."""
        metrics = self._evaluate(None, None)
        self._determine_best_metric(metrics, None)
