//! One binary for all of them: one link, one process per test under nextest.
