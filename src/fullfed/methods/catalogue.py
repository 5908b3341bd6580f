"""Every method, codec, aggregation rule and trainer there is, by the name a recipe calls it.

``registration`` adds those from outside of fullfed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fullfed.config import SKETCH_RULE
from fullfed.methods import (
    blockllm,
    eden,
    embracing_fl,
    fed_sb,
    fedavg,
    fedbpt,
    fedbuff,
    fedcybgd,
    fedkseed,
    fedopt,
    fedpeptao,
    fedprox,
    fedzo,
    ferret,
    flasc,
    flexlora,
    lora,
    slora,
    sparseloco,
)
from fullfed.methods.aggregation import TrimmedMean, WeightedMean
from fullfed.methods.codecs.dense import Dense
from fullfed.methods.codecs.sketch import Sketch
from fullfed.methods.codecs.sketch_options import SketchOptions
from fullfed.methods.codecs.topk import TopK
from fullfed.methods.entries import AggregationEntry, CodecEntry, MethodEntry, TrainerEntry
from fullfed.methods.majority import MajorityVote
from fullfed.methods.robust import ClippedMean, CoordinateMedian, GeometricMedian, MultiKrum
from fullfed.methods.scopes import Adapters, LoraOptions
from fullfed.training.trainer import OWN, BroughtTraining
from fullfed.training.transformers_trainers import (
    DpoTraining,
    SftTraining,
    TransformersTraining,
    check_local,
    check_preferences,
    check_trl_local,
)

DENSE: Mapping[str, Any] = {"name": "dense"}

METHODS: dict[str, MethodEntry] = {
    "fedavg": MethodEntry(
        title="FedAvg",
        paper="McMahan et al. 2017, arXiv 1602.05629",
        composition="everything x first-order x dense x sampled cohort",
        options=fedavg.FedAvgOptions,
        build=fedavg.build,
        codec=DENSE,
    ),
    "fedprox": MethodEntry(
        title="FedProx",
        paper="Li et al. 2020, arXiv 1812.06127",
        composition="everything x first-order, proximal x dense x sampled cohort",
        options=fedprox.FedProxOptions,
        build=fedprox.build,
        codec=DENSE,
    ),
    "fedbuff": MethodEntry(
        title="FedBuff",
        paper="Nguyen et al. 2022, arXiv 2106.06639",
        composition="everything x first-order x dense x buffer of reports on older versions",
        options=fedbuff.FedBuffOptions,
        build=fedbuff.build,
        codec=DENSE,
    ),
    "fedavgm": MethodEntry(
        title="FedAvgM",
        paper="Hsu et al. 2019, arXiv 1909.06335",
        composition="everything x first-order x dense x sampled cohort, momentum at the server",
        options=fedopt.MomentumOptions,
        build=fedopt.build_fedavgm,
        codec=DENSE,
    ),
    "fedadagrad": MethodEntry(
        title="FedAdagrad",
        paper="Reddi et al. 2020, arXiv 2003.00295",
        composition="everything x first-order x dense x sampled cohort, Adagrad at the server",
        options=fedopt.AdaptiveOptions,
        build=fedopt.builder("adagrad"),
        codec=DENSE,
    ),
    "fedadam": MethodEntry(
        title="FedAdam",
        paper="Reddi et al. 2020, arXiv 2003.00295",
        composition="everything x first-order x dense x sampled cohort, Adam at the server",
        options=fedopt.AdaptiveOptions,
        build=fedopt.builder("adam"),
        codec=DENSE,
    ),
    "fedyogi": MethodEntry(
        title="FedYogi",
        paper="Reddi et al. 2020, arXiv 2003.00295",
        composition="everything x first-order x dense x sampled cohort, Yogi at the server",
        options=fedopt.AdaptiveOptions,
        build=fedopt.builder("yogi"),
        codec=DENSE,
    ),
    "diloco": MethodEntry(
        title="DiLoCo",
        paper="Douillard et al. 2023, arXiv 2311.08105",
        composition="everything x first-order x dense x sampled cohort, Nesterov at the server",
        options=fedopt.DiLoCoOptions,
        build=fedopt.build_diloco,
        codec=DENSE,
    ),
    "sparseloco": MethodEntry(
        title="SparseLoCo",
        paper="Sarfi et al. 2025, arXiv 2508.15706",
        composition="everything x first-order x top-k of chunks x sampled cohort",
        options=sparseloco.SparseLoCoOptions,
        build=sparseloco.build,
        codec=sparseloco.CODEC,
    ),
    "eden": MethodEntry(
        title="EDEN",
        paper="Vargaftik et al. 2022, arXiv 2108.08842",
        composition="everything x first-order x rotation and signs x sampled cohort",
        options=eden.EdenOptions,
        build=eden.build,
    ),
    "ferret": MethodEntry(
        title="Ferret",
        paper="Shu et al. 2024, arXiv 2409.06277",
        composition="everything x first-order x sketch x sampled cohort",
        options=ferret.FerretOptions,
        build=ferret.build,
        aggregation=SKETCH_RULE["name"],
    ),
    "fedkseed": MethodEntry(
        title="FedKSeed",
        paper="Qin et al. 2024, arXiv 2312.06353",
        composition="everything x zeroth-order x seeds and scalars x sampled cohort",
        options=fedkseed.FedKSeedOptions,
        build=fedkseed.build,
        learning_rate=1e-4,
    ),
    "fedkseed-pro": MethodEntry(
        title="FedKSeed-Pro",
        paper="Qin et al. 2024, arXiv 2312.06353",
        composition="everything x zeroth-order x seeds and scalars x sampled cohort",
        options=fedkseed.FedKSeedOptions,
        build=fedkseed.build_pro,
        learning_rate=1e-4,
    ),
    "fedcybgd": MethodEntry(
        title="FedCyBGD",
        paper="Wang et al. 2024, arXiv 2406.11187",
        composition="everything x first-order x dense, compressed x cycle of blocks",
        options=fedcybgd.FedCyBGDOptions,
        build=fedcybgd.build,
        codec={"name": "dense", "precision": "bfloat16", "error_feedback": True},
    ),
    "cyclic-ferret": MethodEntry(
        title="Cyclic Ferret",
        paper="no paper; see docs/methods/fedcybgd.md",
        composition="everything x first-order x sketch x cycle of blocks",
        options=fedcybgd.FedCyBGDOptions,
        build=fedcybgd.build,
        codec={"name": "sketch", "coordinates": 1024},
    ),
    "embracing-fl": MethodEntry(
        title="EmbracingFL",
        paper="Lee et al. 2024, arXiv 2406.15125",
        composition="everything x first-order on the last layers x dense x cohort of classes",
        options=embracing_fl.EmbracingFLOptions,
        build=embracing_fl.build,
        codec=DENSE,
    ),
    "blockllm": MethodEntry(
        title="BlockLLM",
        paper="Ramesh et al. 2024, arXiv 2406.17296",
        composition="everything x first-order on a changing set of tensors x dense x cohort",
        options=blockllm.BlockLLMOptions,
        build=blockllm.build,
        codec=DENSE,
    ),
    "fedzo": MethodEntry(
        title="FedZO",
        paper="Fang et al. 2022, arXiv 2201.09531",
        composition="everything x zeroth-order, spheres x dense x sampled cohort",
        options=fedzo.FedZOOptions,
        build=fedzo.build,
        codec=DENSE,
        learning_rate=1e-4,
    ),
    "fedit": MethodEntry(
        title="FedIT",
        paper="Zhang et al. 2023, arXiv 2305.05644",
        composition="LoRA x first-order x dense x sampled cohort",
        options=LoraOptions,
        build=lora.build_fedit,
        codec=DENSE,
        scope=Adapters,
    ),
    "flora": MethodEntry(
        title="FLoRA",
        paper="Wang et al. 2024, arXiv 2409.05976",
        composition="LoRA, folded in x first-order x stacked x sampled cohort",
        options=LoraOptions,
        build=lora.build_flora,
        scope=lora.Folded,
    ),
    "ffa-lora": MethodEntry(
        title="FFA-LoRA",
        paper="Sun et al. 2024, arXiv 2403.12313",
        composition="LoRA, B only x first-order x dense x sampled cohort",
        options=LoraOptions,
        build=lora.build_ffa_lora,
        codec=DENSE,
        scope=lora.FrozenA,
    ),
    "flasc": MethodEntry(
        title="FLASC",
        paper="Kuo et al. 2024, arXiv 2406.05233",
        composition="LoRA x first-order from the largest x top-k x sampled cohort, AdamW at the "
        "server",
        options=flasc.FlascOptions,
        build=flasc.build,
        scope=Adapters,
    ),
    "fed-sb": MethodEntry(
        title="Fed-SB",
        paper="Singhal et al. 2025, arXiv 2502.15436",
        composition="LoRA, R between fixed factors x first-order x dense x sampled cohort",
        options=fed_sb.FedSBOptions,
        build=fed_sb.build,
        scope=fed_sb.scope,
    ),
    "flexlora": MethodEntry(
        title="FlexLoRA",
        paper="Bai et al. 2024, arXiv 2402.11505",
        composition="LoRA of clients' own ranks x first-order x best factors x sampled cohort",
        options=flexlora.FlexLoRAOptions,
        build=flexlora.build,
        scope=flexlora.scope,
    ),
    "slora": MethodEntry(
        title="SLoRA",
        paper="Babakniya et al. 2023, arXiv 2308.06522",
        composition="sparse entries, then LoRA x first-order x dense x sampled cohort",
        options=slora.SLoRAOptions,
        build=slora.build,
        codec=DENSE,
        scope=slora.scope,
    ),
    "fedbpt": MethodEntry(
        title="FedBPT",
        paper="Sun et al. 2023, arXiv 2310.01467",
        composition="a soft prompt x evolution x samples of a search x sampled cohort",
        options=fedbpt.FedBPTOptions,
        build=fedbpt.build,
        scope=fedbpt.scope,
    ),
    "fedpeptao": MethodEntry(
        title="FedPepTAO",
        paper="Che et al. 2023, arXiv 2310.15080",
        composition="prefixes of all layers x first-order x those of some, and variates x cohort",
        options=fedpeptao.FedPepTAOOptions,
        build=fedpeptao.build,
        learning_rate=0.04,
        scope=fedpeptao.scope,
    ),
}

CODECS: dict[str, CodecEntry] = {
    "dense": CodecEntry("every number, in 32, 16 or 8 bits", Dense, lambda seed, codec: codec),
    "sketch": CodecEntry(
        "coordinates on shared random directions", SketchOptions, Sketch, SKETCH_RULE["name"]
    ),
    "topk": CodecEntry("the largest numbers and where they are", TopK, lambda seed, codec: codec),
}

AGGREGATIONS: dict[str, AggregationEntry] = {
    "mean": AggregationEntry("the mean, weighted by samples", WeightedMean, lambda rule: rule),
    "trimmed-mean": AggregationEntry(
        "number by number, the mean without the smallest and the largest",
        TrimmedMean,
        lambda rule: rule,
    ),
    "median": AggregationEntry("number by number, the median", CoordinateMedian, lambda rule: rule),
    "krum": AggregationEntry(
        "the mean of the reports closest to their neighbours", MultiKrum, lambda rule: rule
    ),
    "geometric-median": AggregationEntry(
        "the point closest to all reports", GeometricMedian, lambda rule: rule
    ),
    "clipped-mean": AggregationEntry(
        "the mean of changes, long ones counting less, those that pull against the others nothing",
        ClippedMean,
        lambda rule: rule,
    ),
    "majority-vote": AggregationEntry(
        "of one-bit coordinates, the sign that most say", MajorityVote, lambda rule: rule
    ),
}


TRAINERS: dict[str, TrainerEntry] = {
    "transformers": TrainerEntry(
        "transformers.Trainer",
        TransformersTraining,
        lambda trainer: trainer,
        check_local,
    ),
    "sft": TrainerEntry("TRL's SFTTrainer", SftTraining, lambda trainer: trainer, check_trl_local),
    "dpo": TrainerEntry(
        "TRL's DPOTrainer, on preferences",
        DpoTraining,
        lambda trainer: trainer,
        check_trl_local,
        check_preferences,
    ),
    OWN: TrainerEntry(
        "what was given to fullfed.run, or what a node's owner has brought",
        BroughtTraining,
        lambda trainer: trainer,
    ),
}
