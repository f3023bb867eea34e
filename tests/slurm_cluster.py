"""A real Slurm cluster of one machine: accounting, controller and node as processes of the test, gone afterwards.

Debian has the programs: ``apt-get install slurm-wlm slurmdbd slurm-wlm-mysql-plugin mariadb-server-core
mariadb-client-core``. No configuration of the machine is read or changed: all files, ports and sockets are the
cluster's own. It has accounting, since submitit asks ``sacct`` for the state of jobs.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from services import free_port

PROGRAMS = (
    "munged",
    "mariadbd",
    "mariadb-install-db",
    "slurmdbd",
    "slurmctld",
    "slurmd",
    "sbatch",
    "sacct",
    "sacctmgr",
)
PATIENCE = 60  # seconds that a service may take to start or to end

CONTROLLER = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={slurmctld}
SlurmdPort={slurmd}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
KillWait=5
OverTimeLimit=0
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd}
AccountingStorageUser={user}
AccountingStoragePass={folder}/munge.socket
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=8000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=60 State=UP OverSubscribe=FORCE:4
"""

ACCOUNTING = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={slurmdbd}
SlurmUser={user}
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadbd}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""


def missing() -> list[str]:
    """The programs that are not installed; they lie in /usr/sbin, which the PATH of users may lack."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


@contextlib.contextmanager
def slurm_cluster(log: Callable[[str], object] = print) -> Iterator[Mapping[str, str]]:
    """Start a cluster, yield the environment in which sbatch and its kin reach it, and end all of it."""
    # Sockets have names of at most 107 characters: the folders of tests are too deep.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o755)  # munged refuses a socket that not all users can reach
    places = {
        "folder": folder,
        "host": socket.gethostname().split(".")[0],
        "user": getpass.getuser(),
        "cores": os.cpu_count(),
        **{name: free_port() for name in ("slurmctld", "slurmd", "slurmdbd", "mariadbd")},
    }
    for name in ("state", "spool", "tables"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(CONTROLLER.format(**places))
    (folder / "slurmdbd.conf").write_text(ACCOUNTING.format(**places))
    (folder / "slurmdbd.conf").chmod(0o600)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    environment = os.environ | {"PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
    services: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(name: str, *words: object, ready: list[str]) -> None:
        with (folder / f"{name}.out").open("wb") as out:
            process = subprocess.Popen(
                [name, *map(str, words)], env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        services.append((name, process))
        end = time.monotonic() + PATIENCE
        while subprocess.run(ready, env=environment, capture_output=True, check=False).returncode:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name} does not start:\n{_logs(folder, name)}")
            time.sleep(0.2)
        log(f"{name} is up")

    try:
        munge = folder / "munge.socket"
        start(
            *("munged", "--foreground", f"--socket={munge}", f"--key-file={folder}/munge.key"),
            *(f"--{part}-file={folder}/munge.{part}" for part in ("pid", "log", "seed")),
            ready=["munge", f"--socket={munge}", "--no-input"],
        )
        _run(environment, "mariadb-install-db", f"--datadir={folder}/tables", f"--user={places['user']}")
        sock, tables = f"--socket={folder}/mariadb.socket", f"--datadir={folder}/tables"
        start(
            *("mariadbd", "--no-defaults", tables, sock, f"--port={places['mariadbd']}", "--bind-address=127.0.0.1"),
            *(f"--user={places['user']}", f"--pid-file={folder}/mariadb.pid", "--innodb-buffer-pool-size=64M"),
            ready=["mariadb", "--no-defaults", sock, "--execute=select 1"],
        )
        grants = "create database slurm; grant all on slurm.* to slurm@localhost identified by 'slurm'"
        _run(environment, "mariadb", "--no-defaults", sock, f"--execute={grants}")
        start("slurmdbd", "-D", ready=["sacctmgr", "--noheader", "list", "cluster"])
        _run(environment, "sacctmgr", "--immediate", "add", "cluster", "test")
        start("slurmctld", "-D", "-i", ready=["scontrol", "ping"])
        start("slurmd", "-D", "-N", str(places["host"]), ready=["sh", "-c", "sinfo --noheader -o %T | grep -q idle"])
        yield environment
    finally:
        # Jobs that a failed test leaves would outlive the cluster.
        cancel = ["scancel", "--full", "--signal=KILL", f"--user={places['user']}"]
        if "slurmd" in dict(services):
            subprocess.run(cancel, env=environment, capture_output=True, timeout=PATIENCE, check=False)
            time.sleep(2)
        for name, process in reversed(services):
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                log(f"{name} had to be killed")
        shutil.rmtree(folder, ignore_errors=True)


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _run(environment: Mapping[str, str], *words: str) -> None:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")


def _logs(folder: Path, name: str) -> str:
    files = [file for file in (folder / f"{name}.out", folder / f"{name}.log") if file.exists()]
    return "\n".join(file.read_text(errors="replace")[-3000:] for file in files)
