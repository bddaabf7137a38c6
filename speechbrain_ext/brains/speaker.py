"""Training of a speaker encoder with a margin classifier, stages 1 to 3.

On top of :class:`~speechbrain_ext.brains.validated.ValidatedBrain`, learning rate and
margin are set before every step from the progress in epochs.
"""

from speechbrain_ext.brains.exact import unwrap
from speechbrain_ext.brains.validated import ValidatedBrain


class SpeakerBrain(ValidatedBrain):
    """Trains ``modules.speaker_encoder`` through ``modules.classifier``.

    The classifier is called as ``classifier(embeddings, labels)`` and gives the loss;
    its ``margin`` is set by the schedule.

    Reads from ``hparams``, beside what its base class does: ``lr_schedule``,
    ``margin_schedule`` (functions of the progress in epochs), ``max_grad_norm``.
    """

    def embedder(self):
        """The speaker encoder, without a wrapper."""
        return unwrap(self.modules.speaker_encoder)

    def compute_forward(self, batch, stage):
        """Batch → embeddings [B, 1, E]."""
        batch = batch.to(self.device)
        return self.modules.speaker_encoder(batch.wavs)

    def compute_objectives(self, predictions, batch, stage):
        """Embeddings → loss, a scalar."""
        return self.modules.classifier(predictions, batch.labels.to(self.device))

    def on_fit_batch_start(self, batch, should_step):
        """Set this step's learning rate and margin."""
        progress = self.progress()
        for group in self.optimizer.param_groups:
            group["lr"] = self.hparams.lr_schedule(progress)
        unwrap(self.modules.classifier).margin = self.hparams.margin_schedule(progress)

    def epoch_stats(self):
        """Learning rate and margin of the last step."""
        return {
            "lr": self.optimizer.param_groups[0]["lr"],
            "margin": unwrap(self.modules.classifier).margin,
        }
