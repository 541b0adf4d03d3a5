import socket

import pytest
from rich.console import Console

from cluster.jobs import doctor
from cluster.jobs.doctor import GIB, Check


def render(checks):
    console = Console(width=160)
    with console.capture() as capture:
        console.print(doctor.build_table(checks))
    return capture.get()


def test_old_python_stops_the_jobs():
    check = doctor.check_python((3, 10, 9), in_venv=True)
    assert check.status == "fail"
    assert "3.11" in check.remedy


def test_python_outside_a_venv_is_only_a_warning():
    assert doctor.check_python((3, 12, 1), in_venv=False).status == "warn"
    assert doctor.check_python((3, 12, 1), in_venv=True).status == "ok"


def test_torch_that_fails_to_import_is_reported_with_its_error():
    check = doctor.check_torch("2.13.0", "OSError: libtorch.so", threads="1", cores=2)
    assert (check.status, check.found) == ("fail", "OSError: libtorch.so")


def test_default_threads_are_a_warning_that_names_the_variable():
    check = doctor.check_torch("2.13.0+cpu", "ok", threads=None, cores=2)
    assert check.status == "warn"
    assert "OMP_NUM_THREADS=1" in check.remedy
    assert doctor.check_torch("2.13.0+cpu", "ok", threads="1", cores=2).status == "ok"


@pytest.mark.parametrize(
    ("gpus", "torch_cuda", "status"),
    [((), "", "ok"), (("H200",), "13.0", "ok"), (("H200",), "", "warn"), ((), "13.0", "warn")],
)
def test_cuda_is_judged_by_whether_the_build_fits_the_machine(gpus, torch_cuda, status):
    check = doctor.check_cuda(gpus, torch_cuda)
    assert check.status == status
    assert bool(check.remedy) == (status != "ok")


def test_a_gpu_that_cannot_compute_stops_the_jobs_and_names_the_driver():
    check = doctor.check_cuda(("NVIDIA H200, 550.90.07",), "13.0", "RuntimeError: driver too old")
    assert check.status == "fail"
    assert "550.90.07" in check.found
    assert "driver too old" in check.found
    assert "driver 580" in check.remedy


@pytest.mark.parametrize(
    ("compiler", "headers", "lacking"),
    [("/usr/bin/gcc", True, ""), (None, True, "a C compiler"), ("/usr/bin/cc", False, "headers")],
)
def test_triton_needs_a_compiler_and_pythons_headers(compiler, headers, lacking):
    check = doctor.check_compiler(compiler, headers=headers)
    assert check.status == ("fail" if lacking else "ok")
    assert lacking in check.found


@pytest.mark.parametrize(
    ("flags", "status"),
    [("avx avx2 avx512f avx512_bf16", "ok"), ("avx avx2", "ok"), ("sse2 avx", "fail"), ("", "ok")],
)
def test_processor_needs_avx2(flags, status):
    assert doctor.check_processor(frozenset(flags.split())).status == status


def test_processor_flags_are_read_from_the_first_core(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: x\nflags\t\t: fpu avx2\nflags\t\t: fpu\n")
    assert doctor.processor_flags(cpuinfo) == {"fpu", "avx2"}
    assert doctor.processor_flags(tmp_path / "absent") == frozenset()


def test_missing_and_broken_packages_fail_differently():
    assert doctor.check_package("Ray", None, "missing").found == "not installed"
    broken = doctor.check_package("Ray", "2.60.0", "ImportError: nope")
    assert (broken.status, broken.found) == ("fail", "2.60.0: ImportError: nope")
    assert doctor.check_package("Ray", "2.60.0", "ok").status == "ok"


def test_torchvision_says_whether_it_was_mended():
    assert "mended" in doctor.check_torchvision("0.28.0", "ok", mended=True).found
    assert "as installed" in doctor.check_torchvision("0.28.0", "ok", mended=False).found
    broken = doctor.check_torchvision("0.28.0", "RuntimeError: nms", mended=False)
    assert broken.status == "fail"
    assert "cluster.setup.mend_torchvision" in broken.remedy
    assert doctor.check_torchvision(None, "missing", mended=False).status == "fail"


def test_small_shared_memory_is_a_warning():
    assert doctor.check_shared_memory(64 << 20).status == "warn"
    assert doctor.check_shared_memory(None).status == "warn"
    assert doctor.check_shared_memory(8 * GIB).status == "ok"


def test_little_memory_is_a_warning_and_silence_is_not():
    assert doctor.check_memory(4 * GIB).status == "warn"
    assert doctor.check_memory(20 * GIB).status == "ok"
    assert doctor.check_memory(None).status == "ok"


def test_disk_warns_before_it_fails():
    statuses = [doctor.check_disk(size * GIB).status for size in (1, 5, 50)]
    assert statuses == ["fail", "warn", "ok"]


def test_a_listening_port_is_found_busy_and_a_closed_one_free():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert doctor.is_port_busy(port)
    assert not doctor.is_port_busy(port)


def test_a_busy_port_is_never_more_than_a_warning():
    check = doctor.check_port("MLflow", 5000, busy=True, remedy="another port")
    assert (check.status, check.remedy) == ("warn", "another port")
    assert doctor.check_port("MLflow", 5000, busy=False, remedy="another port").remedy == ""


def test_the_agents_port_is_looked_at_for_submitted_jobs_need_it():
    remedy = {port: remedy for _, port, remedy in doctor.PORTS}[52365]
    assert "No available agent" in remedy
    assert "--dashboard-agent-listen-port" in remedy


def test_only_failures_change_the_exit_code():
    fine = Check(name="a", status="ok", found="")
    odd = Check(name="b", status="warn", found="")
    bad = Check(name="c", status="fail", found="")
    assert doctor.exit_code([fine, odd]) == 0
    assert doctor.exit_code([fine, odd, bad]) == 1


def test_available_memory_is_read_in_bytes(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert doctor.available_memory(meminfo) == 2 << 20
    assert doctor.available_memory(tmp_path / "absent") is None


def test_absent_distribution_has_no_version():
    assert doctor.installed_version("no-such-distribution-here") is None


def test_table_prints_error_text_that_looks_like_markup():
    table = render([Check(name="vLLM", status="fail", found="KeyError: [/red]", remedy="mend it")])
    assert "KeyError: [/red]" in table
    assert "mend it" in table


def test_help_says_what_it_does_and_checks_nothing(capsys):
    with pytest.raises(SystemExit) as end:
        doctor.main(["--help"])
    assert end.value.code == 0
    assert "usage: python -m cluster.jobs.doctor" in capsys.readouterr().out
