# CMake toolchain for building Pyfhel (Microsoft SEAL) from its source distribution alone: each of these three
# options would otherwise clone a repository during the build. Objects are then serialized uncompressed.
set(SEAL_USE_MSGSL OFF CACHE BOOL "" FORCE)
set(SEAL_USE_ZLIB OFF CACHE BOOL "" FORCE)
set(SEAL_USE_ZSTD OFF CACHE BOOL "" FORCE)
