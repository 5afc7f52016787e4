#!/usr/bin/env bash
# Fill a folder with the wheels that bench/gpu.sh needs beside a GPU image's own packages.
#
#     tools/gpu_wheels.sh [FOLDER]        (default: output/gpu_wheels)
#
# For Python 3.12 on x86-64 Linux, in the versions of constraints.txt, without their needs: what is
# needed besides is expected there (see `present`), and the check at the end says if something is
# in neither place. The whole folder stays under 40 MiB. PYTHON names the Python whose pip is used.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:-$root/output/gpu_wheels}
python=${PYTHON:-python3}
most_bytes=$((40 * 1024 * 1024))

# The library's own needs that such images lack, and what these need themselves.
wanted=(
    braceexpand cffi cryptography modelscope-hub pycparser schedulefree webdataset xxhash
    # Optimizers.
    came-pytorch lion-pytorch prodigyopt
    # Those that are measured against.
    diffusers importlib-metadata lazy-importer lycoris-lora toml zipp
)
present=(
    accelerate click einops filelock fsspec huggingface-hub numpy packaging peft pillow protobuf
    psutil pyyaml regex requests safetensors scipy sentencepiece tensorboard tokenizers torch tqdm
    transformers triton typing-extensions urllib3
)

pins=()
for name in "${wanted[@]}"; do
    pin=$(grep -m 1 "^$name==" "$root/constraints.txt") || {
        echo "constraints.txt does not lock $name" >&2
        exit 1
    }
    pins+=("$pin")
done

mkdir -p "$folder"
rm -f "$folder"/*.whl
platforms=(--platform manylinux1_x86_64 --platform manylinux2014_x86_64)
for glibc in 17 24 27 28 31 34 35; do
    platforms+=(--platform "manylinux_2_${glibc}_x86_64")
done
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version 3.12 --implementation cp "${platforms[@]}" --dest "$folder" "${pins[@]}"

"$python" "$root/tools/check_wheels.py" "$folder" --most-bytes "$most_bytes" \
    --wanted "${wanted[@]}" --present "${present[@]}"
