# Limner's page for an NVIDIA card. Datasets, runs, models and the password are kept in /data:
#   docker build -t limner .
#   docker run --gpus all -p 127.0.0.1:7860:7860 -v limner:/data limner
# It prints the password. Cards before the RTX 20 series, and drivers before 580, need --build-arg BUILD=cu126.
FROM ubuntu:24.04
ARG BUILD=cu130

RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /usr/src/limner
# What Limner needs is a layer of its own, which stays when only Limner changes.
COPY scripts/install.py scripts/
COPY trainer/__init__.py trainer/errors.py trainer/i18n.py trainer/nvidia.py trainer/other_cards.py trainer/paths.py trainer/processes.py trainer/
COPY pyproject.toml requirements.lock ./
RUN PIP_NO_CACHE_DIR=1 python3 scripts/install.py --venv /opt/limner --build "$BUILD" --needs-only
COPY . .
RUN /opt/limner/bin/pip install --no-cache-dir --no-deps . \
    && rm -rf /usr/src/limner \
    && useradd --home-dir /data --no-create-home limner \
    && install -d -o limner -g limner /data /shared /shared/models /shared/outputs

WORKDIR /data
USER limner
# HOME is where the models are that Limner downloads; the others are for the tools that lend the card to the container.
ENV HOME=/data LIMNER_HOME=/data PATH=/opt/limner/bin:$PATH PYTHONUNBUFFERED=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME /data
EXPOSE 7860
CMD ["limner", "page", "--listen", "--host-name", "127.0.0.1"]
