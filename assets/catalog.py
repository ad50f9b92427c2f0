"""The families of the data side, as `training.catalog` has those of the model side. The only list of names."""

from training.family import Family

SOURCES = Family(
    "source",
    {
        "files": "assets.sources.files:FilesSource",
        "table": "assets.sources.table:TableSource",
        "embedded": "assets.sources.embedded:EmbeddedSource",
        "webdataset": "assets.sources.webdataset:WebdatasetSource",
        "huggingface": "assets.sources.huggingface:HuggingfaceSource",
        "sql": "assets.sources.sql:SqlSource",
        "vectors": "assets.sources.vectors:VectorsSource",
    },
)
SEGMENTS = Family(
    "segments",
    {
        "silence": "assets.segments.silence:SilenceSegments",
        "times": "assets.segments.times:TimesSegments",
        "transcript": "assets.segments.transcript:TranscriptSegments",
    },
)
JOINS = Family("join", {"key": "assets.joins.key:KeyJoin"})
ENGINES = Family(
    "engine",
    {
        "auto": "assets.engines.auto:AutoEngine",
        "threads": "assets.engines.threads:ThreadsEngine",
        "processes": "assets.engines.processes:ProcessesEngine",
    },
)
LAUNCHERS = Family(
    "launcher",
    {
        "subprocess": "assets.launchers.subprocess:SubprocessLauncher",
        "torchrun": "assets.launchers.torchrun:TorchrunLauncher",
    },
)
