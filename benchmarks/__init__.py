"""Runnable measurements that print JSON lines."""
