"""The queues that are measured: ours, the bare limits of Redis, and the peers, each a module that is a program.

    python -m bench._queues.X enqueue JOBS one|batch     seconds that it took, as JSON
    python -m bench._queues.X dispatch JOBS              seconds from each call to the job's first line, as JSON
    python -m bench._queues.X work                       a worker process (SAQ and taskiq: started by their own program)

BENCH_REDIS_URL and BENCH_MARKS (see `bench._marks`) name what they share. The peers' modules run in an environment of
their own (`requirements-bench.txt`), so nothing here imports the platform but `ours`.
"""
