"""What `bench/gpu.sh` runs: proofs and figures of one card, each part a process of its own."""
