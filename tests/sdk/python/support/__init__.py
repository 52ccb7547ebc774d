"""What the tests share: a server to talk to, a scripted model, tails of event streams, the order checker."""
