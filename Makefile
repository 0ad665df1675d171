# The commands. Each installs what it needs into .venv first; `make` alone lists them.

SHELL := bash
.DEFAULT_GOAL := help
.SUFFIXES:

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
UV_VERSION := 0.13.9
BIN := .venv/bin
STAMP := .venv/.installed

# No library sends telemetry, and all state stays in this folder. It is set here and nowhere else.
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
export PREFECT_HOME := $(CURDIR)/.prefect
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS := 120
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := 0
export RAY_USAGE_STATS_ENABLED := 0
# `dvc` and the stages that it starts use the interpreter of .venv.
export PATH := $(CURDIR)/$(BIN):$(PATH)
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.PHONY: help
help:  ## list the commands
	@echo "usage: make COMMAND [NAME=value]"
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/uv:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "visage needs Python 3.11 or newer (found: $(or $(PYTHON),none)). Install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' || { \
	  echo "$(PYTHON) cannot make virtual environments; install its venv package (Debian: python3-venv)" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(STAMP): requirements.lock pyproject.toml | $(BIN)/uv
	@echo "Setting up .venv (about 6 GB, most of it torch with CUDA; a few minutes on a fast line)" >&2
	@$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements.lock >&2
	@$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation -e . >&2
	@touch $@

.PHONY: setup
setup: $(STAMP)  ## install requirements.lock into .venv (every command does this first)

.PHONY: demo
demo: $(STAMP)  ## run the whole pipeline on the synthetic faces: metrics, report, plots, model
	@$(MAKE) --no-print-directory repro DATA=synthetic
	@$(BIN)/python docs/show_metrics.py

.PHONY: repro
repro: $(STAMP)  ## run the stale stages; DATA=utkface_coral uses presets/utkface_coral.yaml, DATA=synthetic goes back
	@$(if $(DATA),$(use_data))
	@$(BIN)/dvc repro

# Names the presets in use in the one line of params.yaml that says so: DATA="ms_celeb chalearn15", the first wins.
use_data = $(BIN)/python -m stages.presets use $(DATA)

.PHONY: sweep
sweep: $(STAMP)  ## search finetune's settings with Ray Tune (section sweep of params.yaml), or resume; DATA= as for repro
	@$(if $(DATA),$(use_data))
	@$(BIN)/python -m flows.sweep.flow

.PHONY: scale-out
scale-out: $(STAMP)  ## STAGE=align@identity, align@target or pretrain on Ray: this machine's, or that of RAY_ADDRESS
	@test -n "$(STAGE)" || { echo 'usage: make scale-out STAGE=align@identity [RAY_ADDRESS=host:port]' >&2; exit 1; }
	@$(BIN)/python -m flows.scale_out.flow "$(STAGE)"

.PHONY: cluster-demo
cluster-demo: $(STAMP)  ## two Ray nodes on this machine: alignment, pre-training and a sweep of synthetic faces on them
	@$(BIN)/python -m flows.scale_out.cluster_demo

.PHONY: predict
predict: $(STAMP)  ## print one JSON document for PHOTO=x.jpg; MODEL=folder uses another model
	@test -n "$(PHOTO)" || { echo 'usage: make predict PHOTO=x.jpg [MODEL=folder]' >&2; exit 1; }
	@$(BIN)/python -m visage.cli "$(PHOTO)" $(if $(MODEL),--model "$(MODEL)")

.PHONY: retrain
retrain: $(STAMP)  ## new labelled data (retrain.watch) -> challenger -> champion, if it passes the promotion gate
	@$(BIN)/python -m flows.retrain

.PHONY: deploy
deploy: $(STAMP)  ## run the schedules of prefect.yaml until Ctrl-C: server, work pool, worker; PREFECT_API_URL uses your server
	@$(BIN)/python -m flows.deploy

.PHONY: serve
serve: $(STAMP)  ## serve the champion over HTTP on 127.0.0.1, PORT=5001; MODEL=released/NAME, a folder or models:/NAME/VERSION
	@case "$$MODEL" in \
	  ''|models:/*) exec $(BIN)/python -m model_registry.serve --model "$${MODEL:-$(champion)}" --port "$${PORT:-5001}" ;; \
	  *) exec $(BIN)/python -m visage.server.run --model "$$MODEL" --port "$${PORT:-5001}" ;; \
	esac

champion = models:/$$($(BIN)/python -m stages.presets value package.model)@champion

.PHONY: score
score: $(STAMP)  ## score a folder, bucket or table PHOTOS=... with the champion into OUTPUT=folder, or resume
	@test -n "$(PHOTOS)" -a -n "$(OUTPUT)" || { echo 'usage: make score PHOTOS=folder|s3://...|table.csv OUTPUT=folder [MODEL=folder]' >&2; exit 1; }
	@$(BIN)/python -m flows.score.flow "$(PHOTOS)" --output "$(OUTPUT)" $(if $(MODEL),--model "$(MODEL)")

.PHONY: history promote rollback
history: $(STAMP)  ## list which version was champion, when and why
	@$(BIN)/python -m model_registry.promote history "$$($(BIN)/python -m stages.presets value package.model)"
promote: $(STAMP)  ## make VERSION=n the champion by hand
	@test -n "$(VERSION)" || { echo 'usage: make promote VERSION=n' >&2; exit 1; }
	@$(BIN)/python -m model_registry.promote promote "$$($(BIN)/python -m stages.presets value package.model)" "$(VERSION)"
rollback: $(STAMP)  ## make the previous champion the champion again
	@$(BIN)/python -m model_registry.promote rollback "$$($(BIN)/python -m stages.presets value package.model)"

.PHONY: label
label: $(STAMP)  ## unlabelled photos, PHOTOS=folder -> a sheet to correct; then REVIEW=review.csv UNREVIEWED=leave -> labels.csv
	@test -n "$(PHOTOS)" || { echo 'usage: make label PHOTOS=folder [MODELS="folder folder"] [OUTPUT=folder] [REVIEW=file UNREVIEWED=take|leave]' >&2; exit 1; }
	@$(BIN)/python -m flows.label.flow "$(PHOTOS)" $(foreach model,$(MODELS),--model "$(model)") \
	  $(if $(OUTPUT),--output "$(OUTPUT)") $(if $(REVIEW),--finish "$(REVIEW)") $(if $(UNREVIEWED),--unreviewed "$(UNREVIEWED)")

.PHONY: benchmark
benchmark: $(STAMP)  ## the paper's tables, or resume; SIZE=full needs a GPU, WORKERS=2 steps at a time
	@$(BIN)/python -m flows.benchmark.flow benchmarks/$(or $(SIZE),quick).yaml --workers $(or $(WORKERS),2)

.PHONY: protocol
protocol: $(STAMP)  ## all folds of a preset and their total: DATA=fg_net; SEEDS="0 1 2"
	@test -n "$(DATA)" || { echo 'usage: make protocol DATA=preset [SEEDS="0 1 2"] [WORKERS=2]' >&2; exit 1; }
	@$(BIN)/python -m flows.benchmark.flow "$(DATA)" --seeds $(or $(SEEDS),0) --workers $(or $(WORKERS),2)

.PHONY: chain
chain: $(STAMP)  ## fine-tune link by link, or resume: CHAIN=chains/drawn_two_stream.yaml, WORKERS=2 steps at a time
	@test -n "$(CHAIN)" || { echo 'usage: make chain CHAIN=chains/NAME.yaml [WORKERS=2]' >&2; exit 1; }
	@$(BIN)/python -m flows.chain.flow "$(CHAIN)" --workers $(or $(WORKERS),2)

.PHONY: fuse
fuse: $(STAMP)  ## one model of several, released ones too: MODELS="a b" [OUTPUT=folder RULE=mean FACES=data/target/faces SECOND=b]
	@test -n "$(MODELS)" || { echo 'usage: make fuse MODELS="folder-or-name folder-or-name" [OUTPUT=folder] [RULE=mean|weights|gate|kernel] [FACES=folder] [SECOND="name"]' >&2; exit 1; }
	@$(BIN)/python -m flows.fuse $(MODELS) --output "$(or $(OUTPUT),runs/fused)" $(if $(RULE),--rule "$(RULE)") \
	  $(if $(FACES),--faces "$(FACES)") $(if $(SECOND),--second-stream $(SECOND))

.PHONY: results
results: $(STAMP)  ## write docs/results.md from the tracked result files in docs/results/
	$(BIN)/python docs/make_results.py render

.PHONY: bench
bench: $(STAMP)  ## run the measurements of bench/ one after the other; minutes, on an idle machine
	@set -e; for file in bench/[a-z]*.py; do echo "== $$file"; $(BIN)/python -m "bench.$$(basename "$$file" .py)"; done

.PHONY: test
test: $(STAMP)  ## run the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(side_by_side)

.PHONY: test-slow
test-slow: $(STAMP)  ## run the tests that take minutes: whole pipelines, real photos
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not faults" $(side_by_side)

.PHONY: test-faults
test-faults: $(STAMP)  ## kill a driver, a node and the head node of Ray during each job; a quarter of an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults

# One process per core; tests/conftest.py says which tests must share a process.
side_by_side = -n $(or $(WORKERS),auto) --dist loadfile

.PHONY: check
check: $(STAMP)  ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: audit
audit: $(STAMP)  ## look up known vulnerabilities of the packages in requirements.lock; a failed look-up counts as one
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements.lock

.PHONY: lock
lock: $(BIN)/uv  ## write requirements.lock from pyproject.toml; UPGRADE=1 takes newer versions
	$(BIN)/uv pip compile pyproject.toml --extra train --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header $(if $(UPGRADE),--upgrade) --quiet -o requirements.lock

.PHONY: clean
clean:  ## remove caches and the pipeline's outputs; keep .venv, models/start, DVC's cache and runs/
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info data params.resolved.yaml code
	find models -mindepth 1 -maxdepth 1 ! -name start ! -name members -exec rm -rf {} +  # these two hold the user's models
	find reports -mindepth 1 ! -name metrics.json -delete 2>/dev/null || true
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
