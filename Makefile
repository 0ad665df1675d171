# The commands. Each installs what it needs into .venv first; `make` alone lists them.

SHELL := bash
.DEFAULT_GOAL := help
.SUFFIXES:

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
UV_VERSION := 0.13.9
BIN := .venv/bin
STAMP := .venv/.installed

# What the libraries find in their environment.
include environment.mk

# What a person types reaches the commands through the environment, as it was typed: neither make nor the shell looks
# inside a name, whatever letters it has. A recipe uses "$$PHOTO", never $(PHOTO).
TYPED := CHAIN DATA FACES JSON MODEL MODELS OUTPUT PHOTO PHOTOS PORT REVIEW RULE SECOND SEEDS SIZE STAGE UNREVIEWED VERSION WORKERS
$(foreach name,$(TYPED),$(if $(filter undefined,$(origin $(name))),,\
  $(eval override $(name) := $$(value $(name)))$(eval export $(name))))

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

# The command of this clone.
VISAGE := $(BIN)/python -m visage.cli

# $(call each,NAME,--option) puts the words of the variable NAME into the array `words`, each as --option=word; as it is without
# an option.
each = IFS=$$' \t\n' read -r -d '' -a words <<< "$${$(1)-}" || true; words=("$${words[@]/\#/$(addsuffix =,$(2))}")
# $(call needs,NAME,usage) ends the recipe where NAME was not given.
needs = test -n "$${$(1)-}" || { echo 'usage: make $(2)' >&2; exit 2; }

.PHONY: demo
demo: $(STAMP)  ## run the whole pipeline on the synthetic faces: metrics, report, plots, model
	@$(VISAGE) run --data synthetic
	@$(BIN)/python docs/show_metrics.py

.PHONY: repro
repro: $(STAMP)  ## run the stale stages; DATA=utkface_coral uses presets/utkface_coral.yaml, DATA=synthetic goes back
	@$(call each,DATA,--data); $(VISAGE) run "$${words[@]}"

.PHONY: sweep
sweep: $(STAMP)  ## search finetune's settings with Ray Tune (section sweep of params.yaml), or resume; DATA= as for repro
	@$(call each,DATA,--data); $(VISAGE) sweep "$${words[@]}"

.PHONY: scale-out
scale-out: $(STAMP)  ## STAGE=align@identity, align@target or pretrain on Ray: this machine's, or that of RAY_ADDRESS
	@$(call needs,STAGE,scale-out STAGE=align@identity [RAY_ADDRESS=host:port])
	@$(VISAGE) scale-out -- "$$STAGE"

.PHONY: cluster-demo
cluster-demo: $(STAMP)  ## two Ray nodes on this machine: alignment, pre-training and a sweep of synthetic faces on them
	@$(VISAGE) cluster-demo

.PHONY: predict
predict: $(STAMP)  ## a table of the faces of PHOTO=x.jpg, JSON=1 a document; MODEL=name or folder uses another model
	@$(call needs,PHOTO,predict PHOTO=x.jpg [MODEL=name or folder] [JSON=1])
	@$(own_model); $(VISAGE) predict $${JSON:+--json} $${MODEL:+"--model=$$MODEL"} -- "$$PHOTO"

# The pipeline's own model answers where it has made one; else the default released model does.
own_model = test -n "$${MODEL-}" || ! test -e models/export/config.json || MODEL=models/export

.PHONY: explain
explain: $(STAMP)  ## draw what the model looks at in PHOTO=x.jpg into OUTPUT=x.png; MODEL as for predict
	@$(call needs,PHOTO,explain PHOTO=x.jpg OUTPUT=x.png [MODEL=name or folder])
	@$(call needs,OUTPUT,explain PHOTO=x.jpg OUTPUT=x.png [MODEL=name or folder])
	@$(own_model); $(VISAGE) explain $${MODEL:+"--model=$$MODEL"} -- "$$PHOTO" "$$OUTPUT"

.PHONY: retrain
retrain: $(STAMP)  ## new labelled data (retrain.watch) -> challenger -> champion, if it passes the promotion gate
	@$(VISAGE) retrain

.PHONY: drift
drift: $(STAMP)  ## compare the faces that are served with those of the training; retrain on drift
	@$(VISAGE) drift

.PHONY: deploy
deploy: $(STAMP)  ## run the schedules of prefect.yaml until Ctrl-C: server, work pool, worker; PREFECT_API_URL uses your server
	@$(VISAGE) deploy

.PHONY: serve
serve: $(STAMP)  ## serve the champion over HTTP on 127.0.0.1, PORT=5001; MODEL=released/NAME, a folder or models:/NAME/VERSION
	@MODEL="$${MODEL\#released/}"; $(VISAGE) serve "--model=$${MODEL:-champion}" "--port=$${PORT:-5001}"

.PHONY: score
score: $(STAMP)  ## score a folder, bucket or table PHOTOS=... with the champion into OUTPUT=folder, or resume
	@$(call needs,PHOTOS,score PHOTOS=folder|s3://...|table.csv OUTPUT=folder [MODEL=folder])
	@$(call needs,OUTPUT,score PHOTOS=folder|s3://...|table.csv OUTPUT=folder [MODEL=folder])
	@$(VISAGE) score "--output=$$OUTPUT" $${MODEL:+"--model=$$MODEL"} -- "$$PHOTOS"

.PHONY: history promote rollback
history: $(STAMP)  ## list which version was champion, when and why
	@$(VISAGE) history
promote: $(STAMP)  ## make VERSION=n the champion by hand
	@$(call needs,VERSION,promote VERSION=n)
	@$(VISAGE) promote -- "$$VERSION"
rollback: $(STAMP)  ## make the previous champion the champion again
	@$(VISAGE) rollback

.PHONY: label
label: $(STAMP)  ## unlabelled photos, PHOTOS=folder -> a sheet to correct; then REVIEW=review.csv UNREVIEWED=leave -> labels.csv
	@$(call needs,PHOTOS,label PHOTOS=folder [MODELS="folder folder"] [OUTPUT=folder] [REVIEW=file UNREVIEWED=take|leave])
	@$(call each,MODELS,--model); $(VISAGE) label "$${words[@]}" $${OUTPUT:+"--output=$$OUTPUT"} \
	  $${REVIEW:+"--finish=$$REVIEW"} $${UNREVIEWED:+"--unreviewed=$$UNREVIEWED"} -- "$$PHOTOS"

.PHONY: benchmark
benchmark: $(STAMP)  ## the paper's tables, or resume; SIZE=full needs a GPU, WORKERS=2 steps at a time
	@$(VISAGE) benchmark "--size=$${SIZE:-quick}" "--workers=$${WORKERS:-2}"

.PHONY: protocol
protocol: $(STAMP)  ## all folds of a preset and their total: DATA=fg_net; SEEDS="0 1 2"
	@$(call needs,DATA,protocol DATA=preset [SEEDS="0 1 2"] [WORKERS=2])
	@$(call each,SEEDS,--seed); $(VISAGE) protocol "$${words[@]}" "--workers=$${WORKERS:-2}" -- "$$DATA"

.PHONY: chain
chain: $(STAMP)  ## fine-tune link by link, or resume: CHAIN=chains/drawn_two_stream.yaml, WORKERS=2 steps at a time
	@$(call needs,CHAIN,chain CHAIN=chains/NAME.yaml [WORKERS=2])
	@$(VISAGE) chain "--workers=$${WORKERS:-2}" -- "$$CHAIN"

.PHONY: fuse
fuse: $(STAMP)  ## one model of several, released ones too: MODELS="a b" [OUTPUT=folder RULE=mean FACES=data/target/faces SECOND=b]
	@$(call needs,MODELS,fuse MODELS="folder-or-name folder-or-name" [OUTPUT=folder] [RULE=mean|weights|gate|kernel] [FACES=folder] [SECOND="name"])
	@$(call each,MODELS); models=("$${words[@]}"); $(call each,SECOND,--second-stream); \
	  $(VISAGE) fuse "--output=$${OUTPUT:-runs/fused}" $${RULE:+"--rule=$$RULE"} $${FACES:+"--faces=$$FACES"} \
	  "$${words[@]}" -- "$${models[@]}"

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
side_by_side = -n "$${WORKERS:-auto}" --dist loadfile

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
