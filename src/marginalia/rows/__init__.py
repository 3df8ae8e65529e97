"""A density whose data have many rows, evaluated in blocks of rows: what varies from row to row is never held whole.

Works on the jaxpr of any function from parameters and data to one number; knows neither programs nor discretes.
"""

from marginalia.rows import operations as operations
from marginalia.rows import picking as picking
from marginalia.rows import steps as steps
