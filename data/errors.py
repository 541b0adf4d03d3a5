"""The error tree. A message alone makes each, so every error survives pickling between actors.

ConfigError(ValueError)          a setting is wrong; all problems are listed at once (configs/)
EmbedRLError
  DataError(ValueError)          a row, picture or trace cannot be used
    TCoTError                    a text is not a T-CoT trace
    RowError                     a row cannot be used because of one of its fields
    TooManyBytes                 pictures of one step or block hold more than is allowed
    NotFetched                   files of a data set are not on this machine
    NotUnpacked                  archives of a data set are not unpacked yet
  JudgeError(RuntimeError)       the judge gave no usable answer
  WeightSyncError(RuntimeError)  an engine does not hold what the learner sent
  ParityError(RuntimeError)      engine and learner compute different log-probabilities
  RunFolderError(RuntimeError)   a file of the run folder cannot be written
  CheckpointError(RuntimeError)  a checkpoint cannot be written, or is of another run
    DamagedCheckpoint            what it holds cannot be read
  DivergedError(RuntimeError)    step after step was NaN or infinite
  NothingToTrainOn(RuntimeError) nothing is left to train on: pictures, spread, embeddings
  StopRequested                  the job was asked to stop and did
  ClusterError(RuntimeError)     Ray cannot give what the plan asks for
    NotEnoughResources           fewer CPUs or GPUs than the plan needs
    ActorLost                    an actor died and took its work with it
    EngineLost                   the engine in an actor died, the actor did not
    LearnerLost                  the learner group was stopped because a rank died or hung
"""

from configs.errors import ConfigError as ConfigError


class EmbedRLError(Exception):
    """Root of every error this project raises on purpose."""


class DataError(EmbedRLError, ValueError):
    """A row, picture or trace cannot be used; the message names file, row and field."""


class TCoTError(DataError):
    """A text is not a T-CoT trace; the message names what is missing or wrong.

    ``repairs`` holds the names of what was mended and dropped before it was refused, and last why.
    """

    def __init__(self, message: str, repairs: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.repairs = repairs


class RowError(DataError):
    """A row cannot be used because of one of its fields; the message names file, row and field.

    ``field`` is the field as the message names it, without quotes.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class RowsChanged(DataError):
    """A file of rows is not the one that the job opened; to try again does not help."""


class TooManyBytes(DataError):
    """Pictures of one step or block hold more bytes than is allowed; fewer at once may fit."""


class NotFetched(DataError):
    """Files of a data set are in no cache of this machine, and the settings say not to fetch."""


class NotUnpacked(DataError):
    """Archives of a data set are not unpacked yet, and a look at it does not unpack them."""


class JudgeError(EmbedRLError, RuntimeError):
    """The judge's answer is no number of a candidate; the trace is dropped, never guessed for."""


class WeightSyncError(EmbedRLError, RuntimeError):
    """An engine does not hold the weights that the learner sent."""


class ParityError(EmbedRLError, RuntimeError):
    """Engine and learner give the same tokens log-probabilities that differ too much."""


class RunFolderError(EmbedRLError, RuntimeError):
    """A file of the run folder cannot be written; the message says what to do."""


class CheckpointError(EmbedRLError, RuntimeError):
    """A checkpoint cannot be written, is missing, or belongs to another run."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is incomplete, or not what was written; the one before may be well."""


class DivergedError(EmbedRLError, RuntimeError):
    """Training gave NaN or infinite steps in a row; the message names where the keys are."""


class NothingToTrainOn(EmbedRLError, RuntimeError):
    """Steps train nothing; the message counts the reasons and says what to do."""


class StopRequested(EmbedRLError):
    """The job was asked to stop and did, its state saved."""


class ClusterError(EmbedRLError, RuntimeError):
    """The cluster cannot do what the plan asks for."""


class NotEnoughResources(ClusterError):
    """The plan needs more CPUs or GPUs than the cluster has."""


class ActorLost(ClusterError):
    """An actor died and took its work with it."""


class EngineLost(ClusterError):
    """An engine died while its actor lives: the actor is of no use any more."""


class LearnerLost(ClusterError):
    """A rank died, hung or failed, so the whole group was stopped; it can be started again."""
