"""The families of the model side: which kinds there are, and where each one's class lies. The only list of names.

A kind is named in the project file by a word (`fusion: attention`), by a word with options of its own (`fusion: {kind:
attention, layers: 2}`), or, where it is a user's own, by module and class (`fusion: my_package.fusions:MyFusion`).
Importing this imports nothing heavy; a kind's module is imported when the kind is used, or when it is given options.

A class says its options as `Options`, a frozen dataclass with a default for each field. Where the class's module
imports torch, they lie in a light module, which the catalogue names beside the class: ``("module:Class",
"module:Options")``; so a project file is checked without torch.
"""

from training.family import Family

MODALITIES = Family(
    "modality",
    {
        "text": "training.modalities.text:TextModality",
        "image": "training.modalities.image:ImageModality",
        "speech": "training.modalities.speech:SpeechModality",
    },
)
# By modality.
FEATURIZERS = Family(
    "features",
    {
        "text": {
            "tokens": "training.featurizers.tokens:TokensFeaturizer",
            "embedding": "training.featurizers.embedding:EmbeddingTextFeaturizer",
            "processed": "training.featurizers.processed:ProcessedTextFeaturizer",
            "vector": "training.featurizers.vector:VectorFeaturizer",
            "phonemes": "training.featurizers.phonemes:PhonemesFeaturizer",
            "tfidf": "training.featurizers.tfidf:TfidfFeaturizer",
            "word_vectors": "training.featurizers.word_vectors:WordVectorsFeaturizer",
        },
        "image": {
            "pixels": "training.featurizers.pixels:PixelsFeaturizer",
            "embedding": "training.featurizers.embedding:EmbeddingImageFeaturizer",
            "processed": "training.featurizers.processed:ProcessedImageFeaturizer",
            "vector": "training.featurizers.vector:VectorFeaturizer",
        },
        "speech": {
            "log_mel": "training.featurizers.log_mel:LogMelFeaturizer",
            "mfcc": "training.featurizers.mfcc:MfccFeaturizer",
            "whisper_mel": "training.featurizers.whisper_mel:WhisperMelFeaturizer",
            "kaldi_fbank": "training.featurizers.kaldi_fbank:KaldiFbankFeaturizer",
            "embedding": "training.featurizers.embedding:EmbeddingSpeechFeaturizer",
            "processed": "training.featurizers.processed:ProcessedSpeechFeaturizer",
            "vector": "training.featurizers.vector:VectorFeaturizer",
        },
    },
)
# Of features that are floating-point numbers, whatever their modality.
COMPRESSIONS = Family(
    "compression",
    {
        "float16": "training.compressions.float16:Float16Compression",
        "int8": "training.compressions.int8:Int8Compression",
        "pca": "training.compressions.pca:PcaCompression",
        "pq": "training.compressions.pq:PqCompression",
    },
)
# By modality, and by two of them, of which each sample that has both is judged.
FILTERS = Family(
    "filter",
    {
        "text": {
            "encoding": "training.filters.encoding:EncodingFilter",
            "language": "training.filters.language:LanguageFilter",
            "length": "training.filters.length:LengthFilter",
            "repetition": "training.filters.repetition:RepetitionFilter",
        },
        "image": {
            "aspect": "training.filters.aspect:AspectFilter",
            "brightness": "training.filters.brightness:BrightnessFilter",
            "contrast": "training.filters.contrast:ContrastFilter",
            "sharpness": "training.filters.sharpness:SharpnessFilter",
            "size": "training.filters.size:SizeFilter",
        },
        "speech": {
            "channel_balance": "training.filters.channel_balance:ChannelBalanceFilter",
            "clipping": "training.filters.clipping:ClippingFilter",
            "duration": "training.filters.duration:DurationFilter",
            "signal_to_noise": "training.filters.signal_to_noise:SignalToNoiseFilter",
            "silence": "training.filters.silence:SilenceFilter",
            "speech_share": "training.filters.speech_share:SpeechShareFilter",
        },
        "text+image": {"similarity": "training.filters.similarity:SimilarityFilter"},
        "text+speech": {"similarity": "training.filters.similarity:SimilarityFilter"},
    },
)
# By modality.
SIGNATURES = Family(
    "signature",
    {
        "text": {"minhash": "training.signatures.minhash:MinhashSignature"},
        "image": {"perceptual_hash": "training.signatures.perceptual_hash:PerceptualHashSignature"},
        "speech": {"acoustic": "training.signatures.acoustic:AcousticSignature"},
    },
)
# What signs where the project file does not say; other modalities are not signed: short texts repeat.
DEFAULT_SIGNATURES = {"image": "perceptual_hash", "speech": "acoustic"}
FUSIONS = Family(
    "fusion",
    {
        "weighted": "training.fusions.weighted:WeightedFusion",
        "concat": "training.fusions.concat:ConcatFusion",
        "gated": "training.fusions.gated:GatedFusion",
        "attention": "training.fusions.attention:AttentionFusion",
        "cross_attention": "training.fusions.cross_attention:CrossAttentionFusion",
        "bottleneck": ("training.fusions.bottleneck:BottleneckFusion", "training.fusions.options:Bottleneck"),
        "perceiver": ("training.fusions.perceiver:PerceiverFusion", "training.fusions.options:Perceiver"),
        "tensor": ("training.fusions.tensor:TensorFusion", "training.fusions.options:Tensor"),
        "low_rank": ("training.fusions.low_rank:LowRankFusion", "training.fusions.options:LowRank"),
        "film": "training.fusions.film:FilmFusion",
        "logit": "training.fusions.logit:LogitFusion",
        "hybrid": ("training.fusions.hybrid:HybridFusion", "training.fusions.options:Hybrid"),
        "interleaved": "training.fusions.interleaved:InterleavedFusion",
    },
)
DEFAULT_ENCODERS = {"grid": "small_cnn", "frames": "small_cnn", "ids": "llm", "vectors": "linear"}
DEFAULT_ENCODERS |= {"symbols": "small_transformer", "counts": "tfidf"}
# By the form of the features that they read: see `training.featurizers.base`.
ENCODERS = Family(
    "encoder",
    {
        "grid": {
            "small_cnn": "training.encoders.small_cnn:SmallCnnGridEncoder",
            "small_transformer": "training.encoders.small_transformer:SmallTransformerGridEncoder",
            "huggingface": (
                "training.encoders.huggingface:HuggingfaceGridEncoder",
                "training.encoders.options:Huggingface",
            ),
        },
        "frames": {
            "small_cnn": "training.encoders.small_cnn:SmallCnnFramesEncoder",
            "small_transformer": "training.encoders.small_transformer:SmallTransformerFramesEncoder",
            "huggingface": (
                "training.encoders.huggingface:HuggingfaceFramesEncoder",
                "training.encoders.options:Huggingface",
            ),
        },
        "ids": {
            "llm": "training.encoders.llm:LlmEncoder",
            "small_transformer": "training.encoders.small_transformer:SmallTransformerIdsEncoder",
            "huggingface": (
                "training.encoders.huggingface:HuggingfaceIdsEncoder",
                "training.encoders.options:Huggingface",
            ),
        },
        "vectors": {
            "linear": "training.encoders.linear:LinearEncoder",
            "small_transformer": "training.encoders.small_transformer:SmallTransformerVectorsEncoder",
        },
        "symbols": {"small_transformer": "training.encoders.small_transformer:SmallTransformerIdsEncoder"},
        "counts": {"tfidf": "training.encoders.tfidf:TfidfEncoder"},
    },
)
# Encoders that read one kind of features alone, which the same `model` decides (`training.features.with_encoders`).
PRETRAINED_ENCODERS = {"huggingface": "processed"}
# By modality: what makes few discrete codes of the contents that a model answers with.
CODECS = Family(
    "codec",
    {
        "image": {
            "autoencoder": ("training.codecs.autoencoder:AutoencoderCodec", "training.codecs.options:Autoencoder"),
        },
        "speech": {
            "mel": ("training.codecs.mel:MelCodec", "training.codecs.options:Mel"),
            "huggingface": (
                "training.codecs.huggingface:HuggingfaceSpeechCodec",
                "training.codecs.options:Huggingface",
            ),
        },
    },
)
DEFAULT_CODECS = {"image": "autoencoder", "speech": "mel"}
OUTPUTS = Family(
    "output",
    {
        "text": "training.outputs.text:TextOutput",
        "class": "training.outputs.class_:ClassOutput",
        "multi_label": "training.outputs.multi_label:MultiLabelOutput",
        "number": "training.outputs.number:NumberOutput",
        "ranking": "training.outputs.ranking:RankingOutput",
        "embedding": "training.outputs.embedding:EmbeddingOutput",
        "several": "training.outputs.several:SeveralOutput",
        "image": "training.outputs.image:ImageOutput",
        "speech": "training.outputs.speech:SpeechOutput",
        "contents": "training.outputs.contents:ContentsOutput",
    },
)
OBJECTIVES = Family(
    "objective",
    {
        "answer": ("training.objectives.answer:AnswerObjective", "training.objectives.options:Options"),
        "contrastive": (
            "training.objectives.contrastive:ContrastiveObjective",
            "training.objectives.options:Options",
        ),
        "critic": ("training.objectives.critic:CriticObjective", "training.objectives.options:Critic"),
        "distillation": (
            "training.objectives.distillation:DistillationObjective",
            "training.objectives.options:Distillation",
        ),
        "unimodal": ("training.objectives.unimodal:UnimodalObjective", "training.objectives.options:Unimodal"),
    },
)
# What rows are changed by in training, so that the model holds against it (`training.adversary`).
ADVERSARIES = Family(
    "adversary",
    {
        "fgm": ("training.adversaries.fgm:FgmAdversary", "training.adversaries.options:Options"),
        "pgd": ("training.adversaries.pgd:PgdAdversary", "training.adversaries.options:Pgd"),
    },
)
# Smaller or faster forms of a model that was trained (`variants` of the project file).
VARIANTS = Family(
    "variant",
    {
        "int8": "training.variants.int8:Int8Variant",
        "int8_weights": "training.variants.int8_weights:Int8WeightsVariant",
        "pruned": "training.variants.pruned:PrunedVariant",
        "onnx": "training.variants.onnx:OnnxVariant",
    },
)
# How the weights of all go on from what silos learned in a round (`federation` of the project file).
AGGREGATIONS = Family(
    "aggregation",
    {
        "fedavg": "training.aggregations.fedavg:FedavgAggregation",
        "fedprox": "training.aggregations.fedprox:FedproxAggregation",
        "fedadam": "training.aggregations.fedadam:FedadamAggregation",
    },
)
# How what single silos learned becomes one change, before that.
COMBINATIONS = Family(
    "combination",
    {
        "mean": "training.combinations.mean:MeanCombination",
        "median": "training.combinations.median:MedianCombination",
        "krum": "training.combinations.krum:KrumCombination",
    },
)
