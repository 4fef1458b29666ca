"""What the process that `warm` forks from imports: training, and compression of a corpus."""

import clara.model.checkpoint
import pipelines.build_memory.local.run
import training.joint
import training.launch.one_process
import training.loop.zero_engine
import training.pretrain
import training.run.report
import training.run.run

__all__ = ["clara", "pipelines", "training"]

training.loop.zero_engine.import_deepspeed("cpu")
