# The commands that everything else relies on. Each one installs what it misses (Debian, Ubuntu).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
export PATH := $(HOME)/.cargo/bin:$(PATH)

.PHONY: help build demo test serve check soak bench setup

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: ## install what building and running need
	@scripts/setup

build: setup ## release binaries with the agent embedded: target/release/instavmd
	@scripts/build

demo: build ## start a private daemon, do the main job in front of your eyes, stop
	@scripts/demo

test: build ## every test: Rust, and the official Python client against a real daemon
	@scripts/test

serve: build ## the daemon in the foreground with its default data directory
	@scripts/serve

check: setup ## formatting, lints, dependencies, documentation
	@scripts/check

soak: build ## the long figures: storms and thousands of operations
	@scripts/soak

bench: build ## measure what there is, on this machine
	@scripts/bench
