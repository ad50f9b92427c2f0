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
JOINS = Family("join", {"key": "assets.joins.key:KeyJoin", "time": "assets.joins.time:TimeJoin"})
SEGMENTS = Family(
    "segments",
    {
        "boxes": "assets.segments.boxes:BoxesSegments",
        "silence": "assets.segments.silence:SilenceSegments",
        "times": "assets.segments.times:TimesSegments",
        "transcript": "assets.segments.transcript:TranscriptSegments",
    },
)
ENGINES = Family(
    "engine",
    {
        "local": "assets.engines.local:LocalEngine",
        "threads": "assets.engines.threads:ThreadsEngine",
        "processes": "assets.engines.processes:ProcessesEngine",
        "ray": "assets.engines.ray:RayEngine",
    },
)
LAUNCHERS = Family(
    "launcher",
    {
        "subprocess": "assets.launchers.subprocess:SubprocessLauncher",
        "torchrun": "assets.launchers.torchrun:TorchrunLauncher",
    },
)
