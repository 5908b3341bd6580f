# fullfed with all extras. Without arguments for CPUs; for GPUs of NVIDIA:
#
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 -t fullfed:cuda .
#
#   docker run --rm -v "$PWD:/work" fullfed quickstart
#   docker run --rm -v "$PWD:/work" --gpus all fullfed:cuda run my-recipe.toml
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
# torch alone first, from the index of its build, so that no other package brings another one.
RUN pip install --no-cache-dir --constraint constraints.txt --index-url "$TORCH_INDEX" torch \
 && pip install --no-cache-dir --constraint constraints.txt ".[all]" \
 && useradd --create-home --uid 1000 user
USER 1000
WORKDIR /work
ENTRYPOINT ["fullfed"]
CMD ["--help"]
