"""The first minutes with InstaVM: the official client, unmodified, against the daemon of INSTAVM_BASE_URL."""

import os
import sys
import tempfile
import time
from pathlib import Path

from instavm import InstaVM

BASE_URL = os.environ["INSTAVM_BASE_URL"]
API_KEY = os.environ["INSTAVM_API_KEY"]


class Clock:
    """Measures what the lines between `with` and its end take, and prints the title of them with the time."""

    def __init__(self, title):
        self.title = title

    def __enter__(self):
        print(f"\n-- {self.title}")
        self.started = time.perf_counter()
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            print(f"   took {1000 * (time.perf_counter() - self.started):.0f} ms")


def show(code):
    for line in code.strip().splitlines():
        print(f"   >>> {line}")


def told(result):
    for name in ("stdout", "stderr"):
        for line in result[name].splitlines():
            print(f"   {line}")


def wanted(condition, what):
    if not condition:
        sys.exit(f"THE DEMO FAILED: {what}")


def execute(vm, code, **options):
    show(code)
    result = vm.execute(code, **options)
    told(result)
    return result


def state(vm):
    with Clock("State lives between calls: one interpreter for the session"):
        execute(vm, "import math\nx = 42")
        result = execute(vm, "print(x, math.sqrt(x))")
        wanted(result["stdout"].startswith("42 6.48"), result)
    with Clock("An error is a result, with its traceback; the session goes on"):
        result = execute(vm, "def f(n): return 1 / n\nf(0)")
        wanted("ZeroDivisionError" in result["stderr"], result)


def shell(vm):
    with Clock("Shell scripts, with their exit status"):
        result = execute(vm, "echo $(whoami) on $(hostname); . /etc/os-release; echo $PRETTY_NAME; node --version; exit 3", language="bash")
        print(f"   exit status {result['exit_code']}")
        wanted(result["exit_code"] == 3, result)


def files(vm, folder):
    with Clock("A file goes up, is worked on, and comes down"):
        Path(folder, "numbers.csv").write_text("n\n" + "\n".join(map(str, range(1, 101))))
        vm.upload_file(f"{folder}/numbers.csv", "/app/numbers.csv")
        execute(vm, "import csv, json\ntotal = sum(int(r['n']) for r in csv.DictReader(open('numbers.csv')))\njson.dump({'total': total}, open('out.json', 'w'))")
        vm.download_file("out.json", local_path=f"{folder}/out.json")
        text = Path(folder, "out.json").read_text()
        print(f"   out.json: {text}")
        wanted(text == '{"total": 5050}', text)


def background(vm):
    with Clock("A task in the background is started, and asked for later"):
        task = vm.execute_async("for i in 1 2 3; do echo step $i; sleep 0.5; done", language="bash")
        print(f"   task {task['task_id']}")
        told(vm.get_task_result(task["task_id"], poll_interval=1, timeout=30))


def limits(vm):
    with Clock("A time limit: the answer comes in time, with the output so far, and the variables stay"):
        result = execute(vm, "print('working', flush=True)\nwhile True: pass", timeout=2)
        wanted(result["timed_out"] and result["stdout"] == "working\n", result)
        wanted(execute(vm, "print(x)")["stdout"] == "42\n", "the variable is gone")
    with Clock("A memory limit: this VM has 256 MB, the code wants more"):
        small = InstaVM(API_KEY, base_url=BASE_URL, memory_mb=256)
        result = execute(small, "hog = []\nwhile True: hog.append(bytearray(16 << 20))", timeout=20)
        wanted(result["exit_code"] != 0 and not result["timed_out"], result)
        wanted(execute(small, "print('the VM is well')")["stdout"] == "the VM is well\n", "the VM did not recover")
        small.kill()


def isolation(vm):
    with Clock("Root inside is nobody outside, and the machine around the VM is out of reach"):
        execute(vm, "id -un; cat /proc/self/uid_map; ps -e | wc -l", language="bash")
        result = execute(vm, "echo 1 > /proc/sys/kernel/panic", language="bash")
        wanted(result["exit_code"] != 0, result)
        result = execute(vm, "curl -sS --max-time 2 http://169.254.169.254/", language="bash")
        wanted(result["exit_code"] != 0, result)


def clones(vm):
    with Clock("A snapshot of the running VM: its disk, in one step whatever its size"):
        show('snapshot = vm.vms.snapshot(vm_id, name="prepared")')
        snapshot = vm.vms.snapshot(vm.get_session_status()["vm_id"], name="prepared")
        print(f"   {snapshot['id']} is {snapshot['status']}; the VM stood still for {snapshot['pause_ms']:.1f} ms")
    with Clock("A clone: a new VM with the files, until it has answered"):
        show("clone = vm.vms.clone(vm_id)")
        clone = vm.vms.clone(vm.get_session_status()["vm_id"])
        result = in_session(vm, clone["session_id"], "cat /app/out.json; echo changed > /app/out.json")
        wanted(result["stdout"] == '{"total": 5050}', result)
    with Clock("Ten VMs from the snapshot by one call"):
        show('crowd = vm.vms.create(snapshot_id=snapshot["id"], count=10)')
        crowd = vm.vms.create(snapshot_id=snapshot["id"], count=10, memory_mb=256)["vms"]
        wanted(len({one["vm_id"] for one in crowd}) == 10, crowd)
    result = in_session(vm, crowd[-1]["session_id"], "cat /app/out.json")
    wanted(result["stdout"] == '{"total": 5050}', result)
    for one in [clone, *crowd]:
        vm.vms.delete(one["vm_id"])
    vm.snapshots.delete(snapshot["id"])


def volumes(vm):
    with Clock("A volume, written in one VM"):
        show('volume = vm.volumes.create("results", quota_bytes=64 << 20)')
        volume = vm.volumes.create("results", quota_bytes=64 << 20)
        mount = {"volume_id": volume["id"], "mount_path": "/results"}
        first = vm.vms.create(volumes=[{**mount, "mode": "rw"}])
        in_session(vm, first["session_id"], "echo from the first VM > /results/note")
        vm.vms.delete(first["vm_id"])
    with Clock("and read in another, where not even root can write it"):
        second = vm.vms.create(volumes=[{**mount, "mode": "ro"}])
        result = in_session(vm, second["session_id"], "cat /results/note; mount -o remount,rw /results; touch /results/x")
        wanted(result["stdout"] == "from the first VM\n" and result["exit_code"] != 0, result)
        vm.vms.delete(second["vm_id"])
    vm.volumes.delete(volume["id"])


def in_session(vm, session_id, script):
    """Runs a shell script in another session than the client's own."""
    own, vm.session_id = vm.session_id, session_id
    try:
        return execute(vm, script, language="bash")
    finally:
        vm.session_id = own


def packages(vm):
    with Clock("pip install, where this machine reaches its package index"):
        result = vm.execute("pip install -q iniconfig && python -c 'import iniconfig; print(iniconfig)'", language="bash", timeout=12)
        show("pip install -q iniconfig")
        if result["exit_code"] == 0:
            told(result)
        else:
            print("   not reached from here; the rest does not need it")


def main():
    print(f"The daemon serves at {BASE_URL}; this is the official `instavm` Python client, as pip installs it.")
    began = time.perf_counter()
    with Clock("A session: a VM of its own, from the pool"):
        show("vm = InstaVM(api_key, base_url=...)")
        vm = InstaVM(API_KEY, base_url=BASE_URL, metadata={"from": "demo"})
        print(f"   session {vm.session_id}")
        print(f"   isolation: {vm.get_session_info()['isolation']}")
    with tempfile.TemporaryDirectory() as folder:
        state(vm)
        shell(vm)
        files(vm, folder)
        background(vm)
        limits(vm)
        isolation(vm)
        clones(vm)
        volumes(vm)
        packages(vm)
    with Clock("What it used, from the kernel's accounting"):
        usage = vm.get_usage()
        print(f"   {usage['cpu_time']:.2f} s of processor, {usage['memory_used'] >> 20} MB of memory, {usage['network_io']['total_bytes']} bytes on the network")
    with Clock("kill() ends the VM and everything in it"):
        vm.kill()
    print(f"\nAll of it in {time.perf_counter() - began:.1f} s. The daemon and its data go now; `make serve` keeps one.")


if __name__ == "__main__":
    main()
