"""Measurements that anyone can repeat: python -m scripts.bench data, … decode, … train, … quality"""
