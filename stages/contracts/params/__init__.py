"""The typed form of params.yaml: every value, its range and one sentence on what it does.

One section per stage, named like the stage, and shared ones: `model` (how the base model
is run), `sampling` (how a picture is made) and `prompts` (what the lens looks at); `review` says
what may get worse. There are no defaults in code: a missing key is an error, and so is an unknown
one.
"""

from stages.contracts.params.document import SHARED_SECTIONS, Params, load_params
from stages.contracts.params.fields import Section
from stages.contracts.params.intake import (
    CaptionParams,
    ConceptParams,
    EncodeParams,
    FetchParams,
    PrepareParams,
    SingleFilesParams,
)
from stages.contracts.params.lens import (
    AttributeParams,
    DistanceParams,
    EvaluateParams,
    RenderParams,
    ReportParams,
    SlimParams,
    SplitParams,
)
from stages.contracts.params.phases import PhaseParams
from stages.contracts.params.review import ReviewParams
from stages.contracts.params.shared import ModelParams, PromptsParams, SamplingParams
from stages.contracts.params.training import BlockSetting, TrainingAdapterParams, TrainParams

__all__ = [
    "SHARED_SECTIONS",
    "AttributeParams",
    "BlockSetting",
    "CaptionParams",
    "ConceptParams",
    "DistanceParams",
    "EncodeParams",
    "EvaluateParams",
    "FetchParams",
    "ModelParams",
    "Params",
    "PhaseParams",
    "PrepareParams",
    "PromptsParams",
    "RenderParams",
    "ReportParams",
    "ReviewParams",
    "SamplingParams",
    "Section",
    "SingleFilesParams",
    "SlimParams",
    "SplitParams",
    "TrainParams",
    "TrainingAdapterParams",
    "load_params",
]
