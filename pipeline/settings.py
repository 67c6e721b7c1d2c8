"""What a config file holds, as frozen records: each table with its keys and their defaults."""

from __future__ import annotations

import math
from typing import Literal, get_args

import msgspec

from pipeline.units import ByteSize, Duration

Content = Literal["original", "derived", "both"]
Route = Literal["auto", "idc", "nbia"]
ITEM_FIELDS = ("collection", "PatientID", "StudyInstanceUID", "Modality", "SeriesInstanceUID")
DEFAULT_PATH = "{collection}/{PatientID}/{StudyInstanceUID}/{Modality}_{SeriesInstanceUID}/{SOPInstanceUID}.dcm"
DEFAULT_ISIC_PATH = "{collection}/{isic_id}.{ext}"


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the config file: unknown keys are refused."""


class Run(Table, frozen=True):
    """`[run]`."""

    name: str


class Storage(Table, frozen=True):
    """`[storage]`: shared storage. Relative paths are relative to the config file."""

    root: str
    logs: str = ""


class SelectIdc(Table, frozen=True):
    """`[select.idc]`: every key given must hold (AND); values within a key are alternatives (OR)."""

    content: Content
    collections: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    crdc_series: tuple[str, ...] = ()
    analysis_results: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    where: str = ""


class SelectTcia(Table, frozen=True):
    """`[select.tcia]`: series by TCIA's words; every key given must hold, values within a key are alternatives.

    At least one of `collections`, `patients`, `studies`, `series`, `cart` (name of a shared cart) and `manifest` (file:
    `.tcia`, `.s5cmd`, or a table or list of SeriesInstanceUIDs) says where to look; the others choose among what is
    found. `where` is a SQL condition over the rows (`medhaul query tcia columns`).
    """

    collections: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    cart: str = ""
    manifest: str = ""
    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    manufacturers: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    where: str = ""


class SelectIsic(Table, frozen=True):
    """`[select.isic]`: images of the ISIC Archive; every key given must hold.

    `collections`: by id or exact name, an image of any of them. `query`: in the archive's own search language. `ids`:
    ISIC ids, or `ids_file`: a text or CSV file of them. `conditions`: a JSON file with a condition list of the old
    tools. `where`: a SQL condition over the flattened metadata (`medhaul query isic fields`). `limit`: at most so many
    images, 0: all. `thumbnails`: take them along.
    """

    collections: tuple[str, ...] = ()
    query: str = ""
    ids: tuple[str, ...] = ()
    ids_file: str = ""
    conditions: str = ""
    where: str = ""
    limit: int = 0
    thumbnails: bool = False


class Select(Table, frozen=True):
    """`[select]`: one source's selection."""

    idc: SelectIdc | None = None
    tcia: SelectTcia | None = None
    isic: SelectIsic | None = None


class SourceIdc(Table, frozen=True):
    """`[sources.idc]`: endpoints of the NCI Imaging Data Commons and the index to plan from.

    `index` is a Parquet file, the http(s) URL of one, or `packaged` (from the installed idc-index-data); `release` pins
    the data release: `25` or `25.0.5`, empty for whatever is installed. `s3_endpoint` may be `demo`: the embedded site
    and its index. `mirror_endpoint` empty: no fail-over.
    """

    index: str = "packaged"
    release: str = ""
    s3_endpoint: str = "https://s3.amazonaws.com"
    mirror_endpoint: str = "https://storage.googleapis.com"


class SourceTcia(Table, frozen=True):
    """`[sources.tcia]`: TCIA's API (NBIA), and by which route its series come.

    `base_url` ends in `/nbia-api/services` and may be `demo`; `nlst_base_url` is the host that has NLST alone. `route`:
    `auto` takes the bytes from IDC where the pinned IDC index has the series, else from NBIA. `credentials`: a file of
    mode 0600, for accounts; normally none is needed. `connections`: to NBIA for the whole run, of `limits.connections`
    and divided as these are; each task at a time has one at least.
    """

    base_url: str = "https://nbia.cancerimagingarchive.net/nbia-api/services"
    nlst_base_url: str = "https://nlst.cancerimagingarchive.net/nbia-api/services"
    route: Route = "auto"
    connections: int = 16
    credentials: str = ""


class SourceIsic(Table, frozen=True):
    """`[sources.isic]`: the ISIC Archive's API, version 2. `base_url` may be `demo`; `credentials`: a 0600 file."""

    base_url: str = "https://api.isic-archive.com/api/v2"
    credentials: str = ""


class Sources(Table, frozen=True):
    """`[sources]`."""

    idc: SourceIdc = SourceIdc()
    tcia: SourceTcia = SourceTcia()
    isic: SourceIsic = SourceIsic()


class Archive(Table, frozen=True):
    """`[archive]`: all that, beside the items' content, decides an archive's bytes.

    `path` where none is written: of images of the ISIC Archive `DEFAULT_ISIC_PATH`, once a config is parsed.
    """

    name: str = "{group}"
    group_by: Literal["collection", "licence", "run"] = "collection"
    path: str = DEFAULT_PATH
    max_bytes: ByteSize = ByteSize(0)
    group_bytes: ByteSize = ByteSize(64 << 20)
    cut_bytes: ByteSize = ByteSize(2 << 30)
    cut_files: int = 10_000
    block_bytes: ByteSize = ByteSize(4 << 20)
    portable: bool = False


class Shards(Table, frozen=True):
    """`[shards]`: how much one array task does. Never changes the archives' bytes.

    `count` 0: as many as `target_bytes` asks for. A file costs as much as `file_cost` bytes.
    """

    count: int = 0
    target_bytes: ByteSize = ByteSize(20 * 1000**3)
    file_cost: ByteSize = ByteSize(300_000)


class Limits(Table, frozen=True):
    """`[limits]`: politeness. `connections` to the site for the whole run, divided over `tasks` at a time."""

    connections: int = 64
    tasks: int = 4


class Task(Table, frozen=True):
    """`[task]`: one array task. `cores` 0: all that the scheduler grants.

    `retry_base`: the first wait before a request is repeated is at most this long, and each further one twice as long;
    where the site asks to slow down, four times that. `second_round_wait`: the longest wait at the end of a shard,
    before items are tried again whose failures may pass.
    """

    cores: int = 0
    memory: ByteSize = ByteSize(1 << 30)
    scratch: str = ""
    scratch_bytes: ByteSize = ByteSize(20 * 1000**3)
    allow_shared_scratch: bool = False
    verify_blocks: bool = True
    attempts: int = 6
    item_deadline: Duration = Duration(4 * 3600)
    stall: Duration = Duration(60)
    min_rate: ByteSize = ByteSize(1000)
    start_jitter: Duration = Duration(5)
    retry_base: Duration = Duration(0.5)
    second_round_wait: Duration = Duration(20)


class Local(Table, frozen=True):
    """`[local]`: the scheduler for machines without Slurm."""

    jobs: int = 2
    time_limit: Duration = Duration(0)
    signal_lead: Duration = Duration(180)
    kill_wait: Duration = Duration(30)


class SlurmReduce(Table, frozen=True):
    """`[slurm.reduce]`: what the reduce job asks Slurm for where it differs from the array; keys as there."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    reservation: str = ""
    constraint: str = ""
    nodelist: str = ""
    exclude: str = ""
    gres: str = ""
    time: Duration = Duration(0)
    memory: ByteSize = ByteSize(0)
    cpus: int = 0
    extra: tuple[str, ...] = ()


class Slurm(Table, frozen=True):
    """`[slurm]`: what the jobs ask Slurm for; names as of sbatch's options. Empty or 0: the site's default.

    `memory` 0: a quarter more than `task.memory`; `ask_memory` false: none is asked for, where a site refuses that.
    `cpus` 0: `task.cores`, or 2. `requeue`: how often a task that ran into its time limit puts itself back into the
    queue. `max_array`: tasks in one array, 0: as many as the cluster takes. `environment`: names of variables that the
    jobs get beside those every job needs; nothing else is passed on. `poll`: seconds between two questions to Slurm
    while waiting. `settle`: how long reduce waits for receipts that shared storage may not show on its node yet.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    reservation: str = ""
    constraint: str = ""
    nodelist: str = ""
    exclude: str = ""
    gres: str = ""
    time: Duration = Duration(0)
    memory: ByteSize = ByteSize(0)
    ask_memory: bool = True
    cpus: int = 0
    mail_user: str = ""
    mail_type: str = ""
    extra: tuple[str, ...] = ()
    signal_lead: Duration = Duration(180)
    requeue: int = 3
    max_array: int = 0
    environment: tuple[str, ...] = ()
    poll: Duration = Duration(60)
    settle: Duration = Duration(60)
    reduce: SlurmReduce = SlurmReduce()

    def lead(self) -> int:
        """Seconds ahead of the time limit for the early signal: at most half the limit, so that work gets done."""
        return math.ceil(min(self.signal_lead, self.time / 2) if self.time else self.signal_lead)


class Config(Table, frozen=True):
    """A whole config file. `profile` names a file with what all runs on one machine share; keys here win over it."""

    run: Run
    storage: Storage
    select: Select
    sources: Sources = Sources()
    archive: Archive = Archive()
    shards: Shards = Shards()
    limits: Limits = Limits()
    task: Task = Task()
    local: Local = Local()
    slurm: Slurm = Slurm()
    profile: str = ""


CONTENTS: tuple[str, ...] = get_args(Content)
