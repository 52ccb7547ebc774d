//! Black-box tests of the `selfsame` binary.
