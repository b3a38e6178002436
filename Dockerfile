# Limner's page for an NVIDIA card. Datasets and runs are kept in /data; the page asks for a password:
#   docker build -t limner .
#   docker run --gpus all -p 127.0.0.1:7860:7860 -v limner:/data -e LIMNER_PASSWORD=... limner
FROM nvidia/cuda:12.8.1-base-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/limner \
    && /opt/limner/bin/pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cu128 "torch>=2.6"
COPY . /usr/src/limner
RUN /opt/limner/bin/pip install --no-cache-dir /usr/src/limner \
    && rm -rf /usr/src/limner \
    && useradd --create-home limner \
    && install -d -o limner -g limner /data

USER limner
ENV LIMNER_HOME=/data PATH=/opt/limner/bin:$PATH PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 7860
CMD ["limner", "page", "--listen"]
