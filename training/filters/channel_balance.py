"""How far apart the channels of a recording are, before they are mixed."""

from training.filters.base import RangeFilter


class ChannelBalanceFilter(RangeFilter):
    """In dB, by which the quietest lies below the loudest; 0 of one channel, 120 where one is silent. Of a part that of
    its whole recording."""

    value = "channel_balance"
    unit = " dB"
