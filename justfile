# The menu. Everything here is one plain command; logic lives in ./test and in xtask.

# a hub, simulated devices and a reader in one command
demo:
    cargo run --release -- demo

# a hub with its data in ./fieldpost-data
run:
    cargo run --release -- serve

# everything that CI runs
test:
    ./test

# the long counts: crash images, kill rounds, fuzzing
test-full:
    ./test --full

fmt:
    cargo fmt --all

lint:
    cargo clippy --workspace --all-targets --all-features -- -D warnings

tidy:
    cargo xtask tidy

# unit, property, store and hub tests
unit:
    cargo nextest run --workspace --all-features

# the hub in a simulated world, from seeds
sim:
    ./test sim

# the real SDKs against the release binary
conformance:
    ./test conformance
