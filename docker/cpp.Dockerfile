# The C++ library with its example program, and no Python in the image that runs.
#
#   docker build -f docker/cpp.Dockerfile -t trtprune-cpp .
#   docker run --rm -v "$PWD/out:/data/out:ro" -v "$PWD/cat.jpg:/data/cat.jpg:ro" trtprune-cpp \
#       out --image cat.jpg --prompt "What is on the table?" --keep 32 --json
#
# An engine directory comes from `trtprune build`, for example in the image of docker/Dockerfile.

FROM debian:bookworm-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates=20* cmake=3.25.* g++=4:12.2.* libjpeg-dev=1:2.1.* libpng-dev=1.6.* libwebp-dev=1.2.* \
        ninja-build=1.11.* nlohmann-json3-dev=3.11.* python3=3.11.* python3-pip=23.* \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY trtprune/_version.py trtprune/_version.py
COPY cpp cpp
# ONNX Runtime's headers and its library, by their digests.
RUN python3 cpp/fetch_dependencies.py /dependencies onnxruntime onnxruntime-library
RUN cmake -S cpp -B /build -G Ninja -DTRTPRUNE_BUILD_TESTS=OFF -DTRTPRUNE_INSTALL_STATIC=OFF \
        -DTRTPRUNE_BUILD_EXAMPLES=OFF -DTRTPRUNE_ONNXRUNTIME_ROOT=/dependencies/onnxruntime/usr \
    && cmake --build /build \
    && cmake --install /build --prefix /opt/trtprune --strip
# The example is built as any program is: from the installed package.
RUN cmake -S cpp/examples -B /examples -G Ninja -DCMAKE_PREFIX_PATH=/opt/trtprune -DCMAKE_BUILD_TYPE=Release \
        -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH=/opt/trtprune/lib \
    && cmake --build /examples \
    && strip /examples/example_answer_cpp


FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="trtprune-cpp" \
      org.opencontainers.image.description="Vision-language models with visual-token pruning compiled in, run from C++" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN apt-get update \
    && apt-get install -y --no-install-recommends libjpeg62-turbo=1:2.1.* libpng16-16=1.6.* libstdc++6=12.2.* \
        libwebp7=1.2.* \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin trtprune
COPY --from=build /opt/trtprune/lib/libtrtprune.so.* /opt/trtprune/lib/
COPY --from=build /dependencies/onnxruntime-library/ /opt/onnxruntime/
COPY --from=build /examples/example_answer_cpp /usr/local/bin/answer
ENV TRTPRUNE_ONNXRUNTIME=/opt/onnxruntime/libonnxruntime.so.1 \
    ORT_DISABLE_TELEMETRY=1
WORKDIR /data
USER 10001:10001
ENTRYPOINT ["answer"]
