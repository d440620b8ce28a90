"""Measurements that anyone can repeat: python -m scripts.bench data, python -m scripts.bench decode"""
